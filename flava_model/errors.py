"""What the model refuses."""


class WrongInput(ValueError):
    """A tensor or a setting that is not what is expected: the message has both."""
