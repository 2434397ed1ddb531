"""The same truth in other languages than English: which shape there is to see."""

# ruff: noqa: RUF001

import random
from dataclasses import dataclass

from tests.world import Scene


@dataclass(frozen=True)
class Language:
    code: str
    own_name: str  # as Wikipedia writes it before a text in it
    sentences: tuple[str, ...]  # around the name of a shape
    shapes: dict[
        str, tuple[str, str]
    ]  # shape -> its name with article, as the sentences want it; its plain name

    def about(self, scene: Scene, rng: random.Random) -> str:
        """A true sentence."""
        return rng.choice(self.sentences).format(self.shapes[scene.things[0].shape][0])

    def page(self, scene: Scene) -> str:
        """The title of the encyclopedia's page about what there is to see."""
        return self.shapes[scene.things[0].shape][1]


LANGUAGES = (
    Language(
        "de",
        "Deutsch",
        (
            "Auf dieser kleinen Zeichnung sieht man {}.",
            "Hier habe ich gestern Abend am Küchentisch {} gezeichnet.",
        ),
        {
            "circle": ("einen Kreis", "Kreis"),
            "square": ("ein Quadrat", "Quadrat"),
            "triangle": ("ein Dreieck", "Dreieck"),
            "star": ("einen Stern", "Stern"),
            "heart": ("ein Herz", "Herz"),
            "ring": ("einen Ring", "Ring"),
            "cross": ("ein Kreuz", "Kreuz"),
            "crescent": ("eine Mondsichel", "Mondsichel"),
            "diamond": ("eine Raute", "Raute"),
        },
    ),
    Language(
        "fr",
        "Français",
        (
            "Sur cette petite image, on peut voir {}.",
            "J’ai dessiné {} hier soir à la maison avec mes enfants.",
        ),
        {
            "circle": ("un cercle", "Cercle"),
            "square": ("un carré", "Carré"),
            "triangle": ("un triangle", "Triangle"),
            "star": ("une étoile", "Étoile"),
            "heart": ("un cœur", "Cœur"),
            "ring": ("un anneau", "Anneau"),
            "cross": ("une croix", "Croix"),
            "crescent": ("un croissant de lune", "Croissant"),
            "diamond": ("un losange", "Losange"),
        },
    ),
    Language(
        "es",
        "Español",
        (
            "En este pequeño dibujo se puede ver {}.",
            "Ayer por la noche dibujé {} en casa con mis hijos.",
        ),
        {
            "circle": ("un círculo", "Círculo"),
            "square": ("un cuadrado", "Cuadrado"),
            "triangle": ("un triángulo", "Triángulo"),
            "star": ("una estrella", "Estrella"),
            "heart": ("un corazón", "Corazón"),
            "ring": ("un anillo", "Anillo"),
            "cross": ("una cruz", "Cruz"),
            "crescent": ("una media luna", "Media luna"),
            "diamond": ("un rombo", "Rombo"),
        },
    ),
    Language(
        "ru",
        "Русский",
        (
            "На этом маленьком рисунке можно увидеть {}.",
            "Вчера вечером я нарисовал дома {} вместе с детьми.",
        ),
        {
            "circle": ("круг", "Круг"),
            "square": ("квадрат", "Квадрат"),
            "triangle": ("треугольник", "Треугольник"),
            "star": ("звезду", "Звезда"),
            "heart": ("сердце", "Сердце"),
            "ring": ("кольцо", "Кольцо"),
            "cross": ("крест", "Крест"),
            "crescent": ("полумесяц", "Полумесяц"),
            "diamond": ("ромб", "Ромб"),
        },
    ),
)
