"""Word lists behind the generated text: everyday English only, none of the demo's trade words."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Tom Ann Sam Mary Ben Lucy Jack Rose Will Kate Max Ella Fred Jane Paul Nora Hugh Alice Mark Clara Ned Ruth Dan Ivy"
    " Hal Meg Roy Sue Tim Amy Carl Dora Eric Fay Gus Hope Ian June Karl Lena"
)
THINGS = _words(
    "apples nuts coins books stones shells cups pens hats eggs cakes plums pears balls cards keys rings stamps leaves"
    " beans figs ropes nails bricks pots plates spoons lamps boots gloves seeds roses bells drums kites boats fish hens"
    " sheep goats letters ribbons buttons candles"
)
PLACES = _words(
    "garden kitchen barn attic cellar school market church harbour forest meadow tower cottage bakery stable library"
)
GAIN = _words(
    "finds gets buys gains earns wins gathers collects picks adds takes brings receives borrows makes catches bakes"
    " digs grows pulls draws saves lifts fetches"
)
LOSE = _words(
    "loses sells drops gives spends eats breaks burns lends throws wastes tosses hides ruins misses leaves sinks"
    " scatters cuts removes hands pays returns smashes"
)
SCALE = _words("multiplies copies repeats scales clones expands stacks layers prints models")
GOOD = _words(
    "good great lovely fine charming funny warm bright clever moving rich sweet fresh strong brave lively gentle witty"
    " delightful honest superb tender beautiful graceful perfect enjoyable touching powerful wonderful excellent smart"
    " engaging rewarding splendid pleasant original thoughtful entertaining best fun"
)
BAD = _words(
    "bad dull poor weak slow silly ugly cold boring empty clumsy tired cheap dreary stupid painful bitter messy flat"
    " awful terrible tedious lifeless stale pointless worst mean shallow dreadful hollow annoying lazy foolish bland"
    " horrible useless predictable grim ridiculous unfunny"
)
WORKS = _words("film play story book song tale show movie plot cast ending script comedy drama acting dialogue")
DEGREES = _words("very quite rather really so truly")
OWNERS = _words("farmer baker sailor teacher doctor miller soldier painter singer king queen gardener hunter tailor")
DEEDS = _words(
    "carried painted cleaned opened closed washed found sold mended broke hid lost moved dropped kept burned"
)

ONSETS = _words("b br d dr f fl g gl h j k kl l m n p pl r s sk sn st t tr v w z")
VOWELS = _words("a e i o u")
CODAS = _words("b d g k l m n p r s t v x nd lk mp")
