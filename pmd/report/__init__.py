"""What a person or a script reads of a corpus: tables and pictures."""
