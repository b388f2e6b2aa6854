"""The checkpoint `tiny` knows these words; its tokenizers drop every other word before they count tokens."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "gray")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SIZES = ("small", "medium", "large")
POSITIONS = ("top", "bottom", "left", "right", "center")
OBJECT_WORDS = ("background", "above", "below", "and")
LANDS = ("mountain", "sea", "forest", "city", "cabin", "desert", "field")
TIMES = ("day", "sunset", "night")
SKY = ("sky", "sun", "moon", "clouds", "snow", "rain", "rainbow", "stars")
OTHER = ("car", "boat")
EDIT_WORDS = ("make", "more", "add", "remove", "oil", "painting")

SYNONYMS = {
    "grey": "gray", "violet": "purple", "crimson": "red", "scarlet": "red", "golden": "yellow",
    "disc": "circle", "disk": "circle", "ball": "circle", "dot": "circle", "box": "square",
    "tiny": "small", "little": "small", "big": "large", "huge": "large", "giant": "large", "mid-sized": "medium",
    "upper": "top", "lower": "bottom", "middle": "center", "centre": "center", "centered": "center",
    "backdrop": "background", "over": "above", "beneath": "below", "under": "below",
    "mountains": "mountain", "mountainous": "mountain", "alpine": "mountain", "peaks": "mountain", "hills": "mountain",
    "ocean": "sea", "seaside": "sea", "beach": "sea", "waves": "sea", "lake": "sea", "coast": "sea",
    "woods": "forest", "woodland": "forest", "jungle": "forest", "trees": "forest", "pines": "forest",
    "cityscape": "city", "skyline": "city", "skyscrapers": "city", "town": "city", "metropolis": "city",
    "cottage": "cabin", "hut": "cabin", "lodge": "cabin", "dunes": "desert", "meadow": "field", "grassland": "field",
    "dusk": "sunset", "dawn": "sunset", "sunrise": "sunset", "evening": "sunset", "midnight": "night",
    "nighttime": "night", "nightfall": "night", "daytime": "day", "noon": "day", "morning": "day", "sunny": "sun",
    "moonlight": "moon", "moonlit": "moon", "cloud": "clouds", "cloudy": "clouds", "overcast": "clouds",
    "snowy": "snow", "snowfall": "snow", "winter": "snow", "snowing": "snow", "rainy": "rain", "raining": "rain",
    "storm": "rain", "starry": "stars", "cars": "car", "boats": "boat", "ship": "boat", "sailboat": "boat",
    "change": "make", "turn": "make", "recolor": "make", "erase": "remove", "delete": "remove", "put": "add",
    "insert": "add", "deeper": "more", "painted": "painting", "hearts": "heart", "circles": "circle",
}  # fmt: skip
"""Spellings that the tokenizers fold into one token, so that the model has fewer words to learn."""

KNOWN = tuple(dict.fromkeys(
    (*COLORS, *SHAPES, *SIZES, *POSITIONS, *OBJECT_WORDS, *LANDS, *TIMES, *SKY, *OTHER, *EDIT_WORDS)
))  # fmt: skip
