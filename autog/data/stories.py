"""stub"""

GRAMMAR = "1"
COUNT = 20_000


def story(number: int) -> str:
    """stub"""
    return f"Story {number}."
