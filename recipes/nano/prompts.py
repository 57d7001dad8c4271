"""Generate prompts whose camera move is known, to train the text encoder."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.nano.camera import MOVES, SPEEDS

MAX_TOKENS = 226  # of a prompt, as in CogVideoX-5B
UNNAMED_MOVE, UNNAMED_SPEED = "push_in", "slow"
UNNAMED_SHARE = 0.12
SPEED_SHARES = {"slow": 0.35, "normal": 0.5, "fast": 0.15}

# {a} is a speed as an adjective, {b} as an adverb.
_PHRASES = {
    "push_in": """{a} push in|{a} push-in|the camera {b} pushes in|camera pushes in {b}
        |{a} dolly in|the camera {b} moves closer|{a} zoom in|the camera zooms in {b}
        |{a} camera push in|camera moves forward {b}|{a} dolly forward|pushing in {b}
        |{a} push forward|zooming in {b}|{b} push in|{b} zoom in|{a} move in|{a} push towards""",
    "pull_out": """{a} zoom out|{a} pull back|the camera {b} pulls back|{a} pull out
        |{a} pull-out|{a} dolly out|the camera zooms out {b}|the camera {b} moves away
        |{a} camera pull back|camera moves backward {b}|zooming out {b}|pulling back {b}
        |{b} pull out|{b} zoom out|{a} dolly back|the camera {b} pulls out|{a} pullback""",
    "pan_left": """{a} pan left|the camera {b} pans left|{a} pan to the left
        |camera pans to the left {b}|panning left {b}|{a} camera pan left|{a} left pan
        |{b} pan left|camera panning left {b}|{a} panning shot to the left""",
    "pan_right": """{a} pan right|the camera {b} pans right|{a} pan to the right
        |camera pans to the right {b}|panning right {b}|{a} camera pan right|{a} right pan
        |{b} pan right|camera panning right {b}|{a} panning shot to the right""",
    "tilt_up": """{a} tilt up|the camera {b} tilts up|{a} camera tilt up|tilting up {b}
        |the camera {b} tilts upward|{a} crane up|{a} upward tilt|{b} tilt up|{a} tilt upwards""",
    "tilt_down": """{a} tilt down|the camera {b} tilts down|{a} camera tilt down|tilting down {b}
        |the camera {b} tilts downward|{a} crane down|{a} downward tilt|{b} tilt down
        |{a} tilt downwards""",
    "static": """static shot|static camera|locked-off shot|locked off camera|fixed camera
        |still camera|the camera does not move|tripod shot|no camera movement
        |the camera is static|the camera stays still|the camera holds still|static""",
    "handheld": """{a} handheld|handheld shot|handheld camera|{a} handheld camera
        |hand-held camera|shaky handheld shot|handheld camera shake|{a} hand held shot
        |{a} handheld shot|handheld footage|shaky camera""",
    "orbit_left": """{a} orbit left|the camera {b} orbits left|{a} arc left
        |{a} orbit to the left|orbiting left {b}|{a} camera orbit left|{a} truck left
        |{b} orbit left|camera orbiting left {b}|the camera {b} arcs left""",
    "orbit_right": """{a} orbit right|the camera {b} orbits right|{a} arc right
        |{a} orbit to the right|orbiting right {b}|{a} camera orbit right|{a} truck right
        |{b} orbit right|camera orbiting right {b}|the camera {b} arcs right""",
}
_SPEED_WORDS = {
    "slow": ("slow|gentle|subtle|very slow|slow, steady", "slowly|gently|very slowly"),
    "normal": ("||||smooth|steady|cinematic", "||||smoothly|steadily"),
    "fast": ("fast|quick|rapid|very fast", "quickly|fast|rapidly|very quickly"),
}
_LINKS = {  # what a phrase may lead on with
    "push_in": "towards|to|on|onto|into",
    "pull_out": "from|away from|to reveal",
    "pan_left": "along|across|over|past|from",
    "pan_right": "along|across|over|past|from",
    "tilt_up": "from|to|along",
    "tilt_down": "from|to|along",
    "static": "of|on",
    "handheld": "of|behind|following|in|on",
    "orbit_left": "around|about",
    "orbit_right": "around|about",
}
_NOUNS = """
    podium microphone curtain reporter anchor minister president mayor police firefighter soldier
    crowd demonstration march banner flag parliament court city hall station newsroom desk screen
    chart market trader stadium player referee coach match goal ball doctor nurse hospital patient
    school teacher pupil classroom library factory worker machine robot laboratory scientist
    farmer tractor field harvest village church temple mosque castle palace museum painting statue
    bridge tower skyline building house window door roof street square corner alley road motorway
    car truck bus tram train bicycle motorcycle ship boat ferry harbour port crane container
    airport aeroplane helicopter rocket launch pad astronaut satellite earth moon stars galaxy
    cat dog horse cow bird gull fish man woman boy girl child family couple old man young woman
    face portrait hand umbrella coat hat lamp light neon sign shop cafe restaurant kitchen cook
    bowl cup coffee bread cake fruit flower garden park tree forest mountain valley river lake
    sea ocean beach wave cliff island desert canyon waterfall glacier snow rain storm flood
    wildfire smoke flame fog mist cloud sky sunset sunrise night evening morning rubble wreck
    phone laptop camera computer book newspaper letter table chair bed room office toy bottle
"""
_ADJECTIVES = """
    red blue green golden yellow black white grey dark bright small large old modern ancient quiet
    busy empty lonely colourful misty sunny rainy snowy wooden stone warm cold dramatic beautiful
    abandoned distant close tiny giant vintage wet lit crowded damaged burning frozen
"""
_ACTIONS = """
    standing|walking|sitting|waiting|looking at the camera|smiling|talking|running|resting|glowing
    |reflected in water|covered in snow|lit by neon|drifting|settling in the dark|waving
    |crossing the street|rising behind it|stirs|circles above|trembles on the wet ground
    |keeps moving|falls|burns
"""
# Directions that are the scene's own: the camera must not follow them.
_DISTRACTIONS = """
    on the left|on the right|to the left of the door|to the right of it|moving left|moving right
    |turning left|turning right|looking up|looking down|going up|coming down|rising up|falling down
    |heading left|heading right|coming closer|moving away|up the hill|down the road|left behind
    |leaning back|walking in|walking out|crossing from left to right|crossing from right to left
"""
_DISTRACTED_SHARE = 0.2
_PREPOSITIONS = "in|on|near|beside|under|over|in front of|behind|at|with|by|before|after|along"
_STYLES = """
    cinematic|golden hour|soft light|film grain|high detail|shallow depth of field|natural light
    |documentary style|moody|8k|photorealistic|anamorphic|black and white|vivid colours|wide shot
    |close-up|medium shot|aerial view|establishing shot|at dusk|at night|in the morning|blue hour
    |backlit|high quality|opening shot|news footage|ambient light|35mm|realistic|sharp focus
"""


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt and the camera motion it names; `move` is one of MOVES, `speed` of SPEEDS."""

    text: str
    move: str
    speed: str


def labelled_prompts(seed: int, words: Sequence[str]) -> Iterator[LabelledPrompt]:
    """Endless prompts, each a scene with the words of a move somewhere in it.

    Scenes are made of news words and of any English `words`, so that only the words of the move
    mean a move. A prompt without one means a slow push in.
    """
    writer = _Writer(random.Random(seed), words)
    while True:
        yield writer.write()


def read_words(path: Path) -> list[str]:
    """The lower-case words of a word list, one a line, such as Debian's `wamerican`."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line.isascii() and line.isalpha() and line.islower()]


class _Writer:
    def __init__(self, rng: random.Random, words: Sequence[str]) -> None:
        self.rng = rng
        self.words = words

    def write(self) -> LabelledPrompt:
        scene = self._scenes()
        if self.rng.random() < UNNAMED_SHARE:
            parts, move, speed = scene, UNNAMED_MOVE, UNNAMED_SPEED
        else:
            move = self.rng.choice(MOVES)
            speeds, shares = zip(*SPEED_SHARES.items(), strict=True)
            speed = "normal" if move == "static" else self.rng.choices(speeds, shares)[0]
            parts = self._with_move(scene, self._phrase(move, speed), move)
        return LabelledPrompt(self._punctuated(parts), move, speed)

    def _phrase(self, move: str, speed: str) -> str:
        adjectives, adverbs = _SPEED_WORDS[speed]
        spoken = _pick(self.rng, _PHRASES[move])
        filled = spoken.format(a=_pick(self.rng, adjectives), b=_pick(self.rng, adverbs))
        return " ".join(filled.split())

    def _with_move(self, scene: list[str], phrase: str, move: str) -> list[str]:
        draw = self.rng.random()
        if draw < 0.12:
            return [phrase]
        if draw < 0.42:
            return [f"{phrase} {_pick(self.rng, _LINKS[move])} {scene[0]}", *scene[1:]]
        if draw < 0.62:
            return [phrase, *scene]
        if draw < 0.85:
            return [*scene, phrase]
        place = self.rng.randrange(len(scene) + 1)
        return [*scene[:place], phrase, *scene[place:]]

    def _scenes(self) -> list[str]:
        """Usually one scene with some styles, sometimes a whole paragraph."""
        count = self.rng.choices((1, 2, 5, 10), (0.6, 0.25, 0.1, 0.05))[0]
        scenes = [self._scene() for _ in range(count)]
        return scenes + [_pick(self.rng, _STYLES) for _ in range(self.rng.choice((0, 0, 1, 1, 2)))]

    def _scene(self) -> str:
        scene = self._thing()
        if self.rng.random() < _DISTRACTED_SHARE:
            scene += " " + _pick(self.rng, _DISTRACTIONS)
        elif self.rng.random() < 0.4:
            scene += " " + _pick(self.rng, _ACTIONS)
        if self.rng.random() < 0.5:
            scene += f" {_pick(self.rng, _PREPOSITIONS)} {self._thing()}"
        return scene

    def _thing(self) -> str:
        article = self.rng.choices(("a ", "the ", ""), (0.5, 0.3, 0.2))[0]
        adjective = self._word(_ADJECTIVES) + " " if self.rng.random() < 0.5 else ""
        return article + adjective + self._word(_NOUNS)

    def _word(self, known: str) -> str:
        if self.words and self.rng.random() < 0.35:
            return self.rng.choice(self.words)
        return self.rng.choice(known.split())

    def _punctuated(self, parts: list[str]) -> str:
        text = self.rng.choices((", ", ". ", "; ", " "), (0.7, 0.12, 0.1, 0.08))[0].join(parts)
        if self.rng.random() < 0.5:
            text = text[0].upper() + text[1:]
        return text + ("." if self.rng.random() < 0.4 else "")


def _pick(rng: random.Random, choices: str) -> str:
    return rng.choice([" ".join(choice.split()) for choice in choices.split("|")])


assert set(_PHRASES) == set(_LINKS) == set(MOVES), "each move has its words"
assert set(_SPEED_WORDS) == set(SPEED_SHARES) == set(SPEEDS), "each speed has its words"
