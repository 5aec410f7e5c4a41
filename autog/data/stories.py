"""Short stories for children from a small grammar: story i is a pure function of i, the same on every machine.

A template is text with `{slots}`, filled with the story's people and things, and `[one|another]` choices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

GRAMMAR = "1"  # changes with any change of what the stories say
COUNT = 20_000
MASK = (1 << 64) - 1
CHOICE = re.compile(r"\[([^\[\]]*)\]")
Item = TypeVar("Item")


class Dice:
    """Choices that depend on the story's number only (splitmix64)."""

    def __init__(self, number: int) -> None:
        self.state = (number * 0x9E3779B97F4A7C15 + 0x1234567) & MASK

    def roll(self, sides: int) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        value = self.state
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return ((value ^ (value >> 31)) * sides) >> 64

    def one(self, items: Sequence[Item]) -> Item:
        return items[self.roll(len(items))]

    def two(self, items: Sequence[Item]) -> tuple[Item, Item]:
        """Two different items."""
        first, step = self.roll(len(items)), 1 + self.roll(len(items) - 1)
        return items[first], items[(first + step) % len(items)]

    def say(self, template: str, slots: dict[str, str]) -> str:
        """The template with its choices made and its slots filled."""
        while found := CHOICE.search(template):
            template = template[: found.start()] + self.one(found[1].split("|")) + template[found.end() :]
        return template.format_map(slots)


SHE = {"he": "she", "him": "her", "his": "her", "himself": "herself"}
HE = {"he": "he", "him": "him", "his": "his", "himself": "himself"}
GIRLS = (
    "Lily", "Anna", "Mia", "Zoe", "Emma", "Rosa", "Clara", "Nina", "Ella", "Ivy", "Maya", "Lucy", "Tess", "Greta",
    "June", "Ruby", "Sara", "Nora", "Alma", "Wren", "Hazel", "Daisy", "Flora", "Leah", "Cora", "Iris", "Mina",
    "Elsa", "Vera", "Poppy",
)  # fmt: skip
BOYS = (
    "Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Jack", "Oscar", "Theo", "Noah", "Hugo", "Milo", "Eli", "Felix",
    "Amir", "Paul", "Jonas", "Luca", "Emil", "Kai", "Ravi", "Henry", "Anton", "Owen", "Simon", "Nico", "Arlo",
    "Pedro", "Otis", "Karl",
)  # fmt: skip
ANIMALS = (
    "mouse", "rabbit", "fox", "bear", "hedgehog", "squirrel", "otter", "frog", "duck", "kitten", "puppy", "badger",
    "mole", "lamb", "raccoon", "beaver", "goat", "panda",
)  # fmt: skip
ANIMAL_NAMES = (
    "Pip", "Bramble", "Button", "Nutmeg", "Clover", "Pepper", "Dash", "Mossy", "Tumble", "Hazelnut", "Biscuit",
    "Puddle", "Fern", "Bristle", "Whisker", "Pebble", "Acorn", "Bumble", "Thistle", "Snip",
)  # fmt: skip
KINDS = (
    "little", "small", "young", "cheerful", "curious", "kind", "brave", "quiet", "clever", "gentle", "lively",
)  # fmt: skip
ELDERS = (
    ("Grandma", SHE), ("Grandpa", HE), ("Mom", SHE), ("Dad", HE), ("Aunt Rosa", SHE), ("Uncle Ben", HE),
    ("Mrs. Hill", SHE), ("Mr. Reed", HE), ("Miss May", SHE),
)  # fmt: skip
ANIMAL_ELDERS = (
    ("Old Owl", HE), ("Mrs. Goose", SHE), ("Mr. Badger", HE), ("Grandmother Hare", SHE), ("Mother Bear", SHE),
    ("Father Stork", HE), ("Mrs. Toad", SHE), ("Old Tortoise", HE),
)  # fmt: skip
# A place with its preposition, and where in it something may lie.
PLACES = (
    ("in", "the park", ("under a bench", "behind the old oak tree", "beside the pond", "in the tall grass")),
    ("at", "the beach", ("behind a big rock", "under a striped towel", "in a pile of seaweed", "next to an old boat")),
    ("in", "the garden", ("under the rose bush", "behind the shed", "between the cabbages", "in the wheelbarrow")),
    ("in", "the forest", ("under a fern", "beside a hollow log", "at the foot of a pine tree", "in a heap of leaves")),
    ("on", "the farm", ("behind the barn", "in the hay", "next to the water trough", "under the red tractor")),
    ("at", "the market", ("under the apple cart", "behind a stack of boxes", "beside the fountain", "near the bread")),
    ("by", "the river", ("under the little bridge", "in the reeds", "behind a willow tree", "on a flat stone")),
    ("on", "the hill", ("behind the stone wall", "in the heather", "under a bush", "beside the gate")),
    ("in", "the meadow", ("in the clover", "behind a mossy stone", "beside the fence", "under a thorn bush")),
    ("at", "the playground", ("under the slide", "behind the swings", "in the sandbox", "beside the seesaw")),
)
THINGS = (
    "red ball", "blue kite", "wooden boat", "yellow hat", "silver bell", "toy train", "green scarf", "little drum",
    "paper crown", "rag doll", "tin whistle", "glass marble", "picture book", "orange bucket", "woolen mitten",
    "music box", "toy rabbit", "shiny key",
)  # fmt: skip
SHARED = ("swing", "red wagon", "big puzzle", "box of crayons", "jump rope", "toy castle", "bag of blocks", "drum")
COLORS = (
    "red", "blue", "green", "yellow", "white", "purple", "orange", "silver",
)  # fmt: skip
FOODS = (
    "warm soup", "apple pie", "honey cakes", "fresh bread", "pancakes with jam", "hot cocoa", "berry tart",
    "buttered toast", "oatmeal cookies", "pumpkin soup",
)  # fmt: skip
WEATHERS = (
    "sunny", "windy", "cloudy", "bright", "warm", "cool", "misty", "frosty", "golden autumn", "fresh spring", "rainy",
)  # fmt: skip
# Who is in trouble, where it is, and what helps.
TROUBLES = (
    ("kitten", "high up in a tree", "a ladder"), ("duckling", "behind a wire fence", "a small spade"),
    ("puppy", "in a deep, muddy hole", "a strong rope"), ("baby bird", "in a narrow chimney", "a ladder"),
    ("lamb", "in a thorny bush", "a pair of garden shears"), ("turtle", "on its back in a ditch", "a long plank"),
    ("hedgehog", "at the bottom of a bucket", "a wide board"), ("butterfly", "in a sticky web", "a soft feather"),
    ("piglet", "on a rock in the stream", "a wooden plank"),
)  # fmt: skip
# A fear, the first small step, and the deed.
FEARS = (
    ("the dark", "hold a small lantern", "walked all the way down the dark hall"),
    ("thunder", "count slowly after each flash", "stood at the window and watched the storm"),
    ("deep water", "put just one foot in", "swam across the pond"),
    ("big dogs", "hold out one open hand", "stroked the big dog behind its ears"),
    ("climbing", "go up just one step", "climbed right to the top"),
    ("singing in front of others", "sing one line very softly", "sang the whole song"),
    ("the noisy mill", "listen from the gate first", "walked inside and waved at the great wheel"),
    ("talking to strangers at school", "say just one hello", "told the whole class a funny story"),
)
BREAKABLES = (
    ("blue vase", "glue"), ("big brown teapot", "glue"), ("paper lantern", "paper and paste"), ("kite", "tape"),
    ("wooden chair", "nails and a hammer"), ("flower pot", "glue"), ("garden fence", "new boards"),
    ("picture frame", "glue"), ("toy ship", "glue and string"),
)  # fmt: skip
SKILLS = (
    ("ride a bicycle", "fell into the grass"), ("whistle", "made only a puff of air"),
    ("swim", "swallowed a lot of water"), ("skate", "sat down hard on the ice"), ("bake bread", "burned the crust"),
    ("fly a kite", "watched it drop like a stone"), ("tie a bow", "ended up with a big knot"),
    ("juggle", "dropped all three apples"), ("play the flute", "made a sound like an angry goose"),
    ("row a boat", "went around in a circle"), ("build a birdhouse", "hit a thumb instead of the nail"),
)  # fmt: skip
GIFTS = (
    ("a cake with berries on top", "the cake slid off the plate", "a big bowl of berries and cream"),
    ("a necklace of shells", "the string broke and the shells rolled away", "a picture made of shells"),
    ("a painting of the house", "rain came in and the colors ran", "a rainbow out of all the running colors"),
    ("a crown of flowers", "a goat ate half of it", "a small bunch of the flowers that were left"),
    ("a clay bowl", "the bowl cracked in the sun", "a tiny boat out of the biggest piece"),
    ("a warm scarf", "the wool got into a terrible tangle", "a soft pillow filled with the wool"),
    ("a paper lantern", "the wind tore the paper", "a garland out of the bright paper strips"),
)
LURES = (
    "a blue butterfly", "a white rabbit", "a shiny beetle", "a drifting balloon", "a line of ants", "a yellow leaf",
    "the song of a bird", "the sound of a far drum",
)  # fmt: skip
GUIDES = (
    ("snail", "the smell of warm bread"), ("deer", "the sound of the church bell"), ("crow", "the smoke of a chimney"),
    ("beetle", "the little stream"), ("hare", "the light of the evening star"), ("robin", "the row of tall poplars"),
)  # fmt: skip
SEEDS = ("sunflower", "pumpkin", "bean", "apple tree", "carrot", "strawberry", "pea", "tulip")

OPENINGS = (
    "Once upon a time, there was {a_kind} {sort} named {hero}.",
    "There once was {a_kind} {sort} called {hero}.",
    "{Hero} was {a_kind} {sort} who lived [near {place}|in a small village|at the end of a long road|in a cozy house].",
    "In a [small|quiet|sunny|far] [town|valley|village], there lived {a_kind} {sort} named {hero}.",
    "This is the story of {hero}, {a_kind} {sort} [with a big heart|who lived near {place}|who could not sit still].",
    "Not long ago, {a_kind} {sort} named {hero} lived in a house with {a_color} door.",
)
CLOSINGS = (
    "{Hero} [smiled all the way home|fell asleep with a smile that night|had never felt so happy].",
    "That evening, they [all ate|sat together and ate] {food}, and {hero} told the story again and again.",
    "From that day on, {hero} and {friend} were [the best of friends|always together|never far apart].",
    "And when the [stars came out|moon rose over {place}], {hero} was already fast asleep.",
    "{Elder} [gave {hero} a big hug|laughed and kissed {hero} on the nose], and then it was time for {food}.",
    "And that was the end of a very [good|long|strange|happy] day.",
)
MEETINGS = (
    "Just then, {friend} came by.",
    "{Friend}, who [lived next door|was {hero}'s best friend|happened to be near], came running.",
    'Then {hero} saw {friend}. "[What is the matter|Why do you look so worried|What happened]?" asked {friend}.',
)

# A plot is a row of beats; each beat is one of several templates.
PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        (
            "{He} had {a_thing} that {he} [loved very much|took everywhere|had got from {elder}].",
            "More than anything, {hero} loved {his} {thing}. {Elder} had given it to {him}.",
        ),
        (
            "One {weather} day, {hero} was playing {at} {place}. When it was time to go, the {thing} was gone!",
            "One {weather} day, {he} took it along to {place}. But on the way home, {he} noticed that the {thing} "
            "was missing.",
        ),
        (
            '"Oh no!" cried {hero}. "Where is my {thing}?" {He} looked {spot}, but it was not there.',
            "{Hero} wanted to cry. {He} looked {spot}, but there was [nothing|only a sleepy cat|only an old shoe].",
        ),
        MEETINGS,
        (
            '"I lost my {thing}," said {hero}. "Do not be sad," said {friend}. "Two can look better than one."',
            '{Hero} told {him2} everything. "Let us think," said {friend}. "Where did you play last?"',
        ),
        (
            "Together they looked {spot2}. [Something {color} shone there|There was something there]. It was the "
            "{thing}!",
            "They looked [high and low|everywhere], and at last {friend} looked {spot2}. \"Here it is!\" {he2} called.",
        ),
        (
            '{Hero} [jumped for joy|laughed out loud]. "Thank you, {friend}! You are a true friend."',
            '"Thank you!" said {hero}. {He} held the {thing} tight and let {friend} [play with it too|carry it home].',
        ),
    ),
    "rescue": (
        (
            "{He} liked to walk {around} {place} and [look at the clouds|listen to the birds|collect smooth stones].",
            "Every day {he} went to {place}, and every day there was something new to see.",
        ),
        (
            "One {weather} day, {he} heard a [tiny|thin|sad] voice. It came from {a_baby}. The poor thing was stuck "
            "{stuck}!",
            "One {weather} morning, {he} found {a_baby}. It was stuck {stuck} and could not get away.",
        ),
        (
            '"Do not be afraid," said {hero}. "I will help you." {He} tried and tried, but {he} was too small.',
            "{Hero} tried to reach it, but {his} arms were too short. The {baby} [shook with fear|looked at {him} with "
            "big eyes].",
        ),
        MEETINGS,
        (
            '"We need {tool}," said {friend}. They ran to {elder}, who had just the right one.',
            '"Quick, ask {elder}!" said {friend}. {Elder} brought {tool} at once.',
        ),
        (
            "With {tool}, they worked slowly and carefully. At last the {baby} was free!",
            "{Hero} was [very careful|as quiet as a mouse]. {He} used {tool}, and soon the {baby} was safe.",
        ),
        (
            "The {baby} [rubbed against {hero}'s leg|made a happy little sound|danced in a circle] to say thank you.",
            '"You were [brave|patient|kind]," said {elder}. {Hero} [felt warm inside|blushed a little].',
        ),
    ),
    "share": (
        (
            "{His} best friend was {friend}. They [did everything together|met every day {at} {place}].",
            "{He} often played {at} {place} with {friend}.",
        ),
        (
            "One {weather} day, they found a {shared}. \"It is mine!\" said {hero}. \"No, I saw it first!\" said "
            "{friend}.",
            "One day there was a new {shared}, and both of them wanted it. {Hero} pulled, and {friend} pulled, too.",
        ),
        (
            "They [shouted|argued] until {both} were red in the face. Then {friend} went away, and {hero} was alone.",
            '"Then I will not play with you any more," said {friend}, and {he2} walked away. {Hero} did not look up.',
        ),
        (
            "But playing alone was [no fun at all|very boring]. {Hero} looked at the {shared} and sighed.",
            "Now {hero} had the {shared} all to {himself}. But [nobody laughed|it was strangely quiet].",
        ),
        (
            '{Elder} sat down beside {him}. "A thing is twice as nice when you share it," {he3} said.',
            '"What would make you happy now?" asked {elder}. {Hero} thought about it. "{Friend}," {he} whispered.',
        ),
        (
            "So {hero} went to find {friend}. \"I am sorry,\" {he} said. \"You go first, and then it is my turn.\"",
            '{Hero} ran after {him2}. "I was wrong," {he} said. "Let us take turns."',
        ),
        (
            "{Friend} smiled. They played with the {shared} until [the sun went down|it was dark], and nobody counted "
            "the turns.",
            '"I am sorry, too," said {friend}. Soon both of them were laughing again.',
        ),
    ),
    "fear": (
        (
            "{Hero} could [run fast|sing well|tell good jokes], but there was one thing {he} did not like: {fear}.",
            "Everybody thought {hero} was [bold|strong], but {he} had a secret. {He} was afraid of {fear}.",
        ),
        (
            "One {weather} day, {friend} asked {him} to come along. {Hero}'s knees shook. "
            '"I cannot do it," {he} said.',
            "{Friend} was not afraid of {fear} at all. \"Come with me!\" {he2} called. But {hero} hid behind {elder}.",
        ),
        (
            '"Everyone is afraid of something," said {elder}. "When I was little, I was afraid of [spiders|geese|the '
            'wind]."',
            '"Being brave does not mean that you are not afraid," said {elder}. "It means that you try."',
        ),
        (
            '"What can I do?" asked {hero}. "Begin with something small," said {elder}. "Today, {step}."',
            '{Elder} took {his} hand. "A big thing is made of little things," {he3} said. "First, {step}."',
        ),
        (
            "So {hero} did. It was [not so bad|only a little scary]. The next day {he} tried again, and then again.",
            "{Hero} took a deep breath and did it. {His} heart beat fast, but nothing bad happened.",
        ),
        (
            "And one day, {hero} {deed}. \"I did it!\" {he} shouted.",
            "After a week, {he} {deed}, and {friend} [clapped|cheered].",
        ),
        (
            "{Hero} was still a little afraid of {fear}, but now {he} knew what to do.",
            '"I knew you could," said {elder}. {Hero} stood very tall that day.',
        ),
    ),
    "broken": (
        (
            "{Elder} had a {breakable} that {he3} liked very much.",
            "{He} was not allowed to play near {elder_s} {breakable}.",
        ),
        (
            "One {weather} day, {hero} was running [too fast|after a ball|in circles]. Crash! The {breakable} was "
            "broken.",
            "But one day {hero} forgot. {He} bumped into it, and the {breakable} broke.",
        ),
        (
            "{Hero} stood very still. Nobody had seen it. {He} could [hide|run away] and say nothing.",
            '"What have I done?" thought {hero}. {He} wanted to [hide under the bed|run to {place}].',
        ),
        (
            "{Friend} saw {his} sad face. \"You must tell {elder},\" said {friend}. \"I will come with you.\"",
            "All through [lunch|dinner] {he} could not eat. The secret was as heavy as a stone.",
        ),
        (
            "So {he} went to {elder}. \"I broke your {breakable},\" {he} said in a small voice. \"I am very sorry.\"",
            "At last {he} went to {elder} and told {him3} the truth. A tear ran down {his} cheek.",
        ),
        (
            '{Elder} was quiet for a moment. "It was brave to tell me," {he3} said. "Come, we can mend it."',
            '"Thank you for telling me," said {elder}. "Things can break. Let us see what we can do."',
        ),
        (
            "They took {mend} and worked side by side. In the end one could still see [the crack|where it was mended], "
            "but {elder} said that {he3} liked it even better now.",
            "With {mend} they made it whole again. It looked [a bit funny|almost like new], and both of them laughed.",
        ),
    ),
    "learn": (
        (
            "{Hero} wanted to {skill} more than anything.",
            "All the others could {skill}. Only {hero} could not.",
        ),
        (
            "One {weather} day, {he} tried it {at} {place}. {He} {failed}.",
            "{He} tried it on Monday and {failed}. {He} tried it on Tuesday and {failed} again.",
        ),
        (
            '"I will never learn it!" {he} cried, and {he} [kicked a stone|sat down in the grass].',
            '"It is too hard," {he} said. {He} wanted to give up.',
        ),
        MEETINGS,
        (
            '"I {failed_too}, too, when I began," said {friend}. "Do it slowly. I will show you."',
            '"You are in too much of a hurry," said {friend}. "Watch me, and then do it with me."',
        ),
        (
            "They practiced every day [after breakfast|before dinner|until the sun went down]. Each day it went a "
            "little better.",
            "The first day was hard. The second day was [better|easier]. On the third day, something "
            "wonderful happened.",
        ),
        (
            'And then {hero} could {skill}! "Look at me!" {he} called, and {elder} came out to [watch|clap].',
            "Suddenly {he} could do it. {He} could {skill}! {Friend} cheered so loudly that the birds flew up.",
        ),
    ),
    "gift": (
        (
            "It was almost {elder_s} birthday, and {hero} had no money for a present.",
            "Tomorrow was {elder_s} birthday. \"What can I give {him3}?\" {hero} wondered.",
        ),
        (
            '"I will make something," {he} decided. All morning {he} worked on {gift}.',
            'Then {he} had an idea. "I will make {gift}!" {he} said, and {he} began at once.',
        ),
        (
            "It was almost done when something terrible happened: {mishap}!",
            "{He} was so proud of it. But then {mishap}.",
        ),
        MEETINGS,
        (
            '{Hero} showed {him2} what was left. "It is all ruined," {he} said. "Not all of it," said {friend}.',
            '"Now I have nothing," said {hero}. {Friend} looked at it closely. "I have an idea," {he2} said.',
        ),
        (
            "They put their heads together, and in the end they came up with {rescue}.",
            "They [worked until it was dark|hurried as fast as they could]. Out of the bad luck they made {rescue}.",
        ),
        (
            'The next day, {elder} opened the present. "This is the loveliest thing I ever got," {he3} said.',
            "{Elder} looked at it for a long time. \"Did you make this for me?\" {he3} asked, and {his3} eyes shone.",
        ),
    ),
    "way": (
        (
            "{Elder} always said, \"Do not go too far from {place}.\"",
            "{He} was so curious that {he} often forgot [the time|to look where {he} was going].",
        ),
        (
            "One {weather} day, {he} followed {lure}. On and on {he} went, over [a hill|a bridge] and through [the "
            "bushes|a field].",
            "One {weather} afternoon, {he} saw something. It was {lure}! {Hero} went after it, step by step.",
        ),
        (
            "When {he} looked up, nothing looked the same. \"Where am I?\" said {hero}. {He} was lost.",
            "Then it was gone, and {hero} did not know the way back. The shadows grew long.",
        ),
        (
            "{Hero} sat down and [cried a little|hugged {his} knees]. A {guide} came out of the grass. \"Why are you "
            "crying?\" it asked.",
            '"Hello," said a voice. It was {a_guide}. "You are not from here, are you?"',
        ),
        (
            '"I want to go home," said {hero}. "Then follow {sign}," said the {guide}. "It always leads to {place}."',
            '"Please, how do I get home?" asked {hero}. The {guide} thought for a while. "Follow {sign}," it said.',
        ),
        (
            "So {hero} followed {sign}, and the {guide} went along for part of the way. Soon {he} saw a light.",
            "{Hero} thanked the {guide} and followed {sign}. The way was long, but {he} did not stop.",
        ),
        (
            "It was {elder} with a lamp! {Hero} ran into {his3} arms. \"I will never go so far again,\" {he} said.",
            "At the gate stood {elder} and {friend}. \"There you are!\" they cried, and they all hugged each other.",
        ),
    ),
    "seed": (
        (
            "In spring, {elder} gave {him} a tiny {seed} seed. \"Take good care of it,\" {he3} said.",
            "One {weather} day, {hero} found a small brown seed {spot}. \"That is {a_seed} seed,\" said {elder}.",
        ),
        (
            "{Hero} dug a hole {at} {place} and put the seed inside. Then {he} gave it some water.",
            "{He} planted it in [soft earth|a sunny corner] and watered it every morning.",
        ),
        (
            "The next day {he} came back, but there was nothing to see. \"Why does it not grow?\" asked {hero}.",
            "A week went by. Nothing happened. \"My seed is asleep,\" said {hero}, and {he} was [sad|cross].",
        ),
        (
            '"Good things take time," said {elder}. "You must wait."',
            '{Friend} came to look. "Maybe it does not like to be watched," {he2} said. So they told it '
            "stories instead.",
        ),
        (
            "Then a storm came. {Hero} put an old [bucket|basket|umbrella] over the spot to keep it safe.",
            "One night it was very cold. {Hero} covered the spot with [straw|leaves|{his} own scarf].",
        ),
        (
            "And one morning, a tiny green leaf looked out of the earth. \"Hello!\" said {hero}.",
            'When the sun came back, there was something green. "It woke up!" shouted {hero}.',
        ),
        (
            "By the end of summer, the plant was [taller than {hero}|as high as the fence]. {He} shared what grew "
            "on it with {friend}.",
            "All summer long it grew and grew. {Hero} kept one new seed for the next spring.",
        ),
    ),
}  # fmt: skip


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def people(dice: Dice) -> dict[str, str]:
    """Hero, friend and elder with their pronouns: all children, or all animals."""
    wild = dice.roll(4) == 0
    she, she_too = dice.roll(2) == 0, dice.roll(2) == 0
    kind = dice.one(KINDS)
    if wild:
        hero, friend = dice.two(ANIMAL_NAMES)
        sort, sort_too = dice.two(ANIMALS)
        friend = f"{friend} the {sort_too}"
    else:
        hero = dice.one(GIRLS if she else BOYS)
        friend = dice.one([name for name in (GIRLS if she_too else BOYS) if name != hero])
        sort = "girl" if she else "boy"
    elder, elder_pronouns = dice.one(ANIMAL_ELDERS if wild else ELDERS)
    slots = {"hero": hero, "sort": sort, "a_kind": article(kind), "friend": friend, "elder": elder}
    for ending, pronouns in (("", SHE if she else HE), ("2", SHE if she_too else HE), ("3", elder_pronouns)):
        slots |= {word + ending: text for word, text in pronouns.items()}
    return slots | {"elder_s": f"{elder}'s", "both": "both of them"}


def things(dice: Dice) -> dict[str, str]:
    """Places and things of a story."""
    at, place, spots = dice.one(PLACES)
    spot, spot2 = dice.two(spots)
    baby, stuck, tool = dice.one(TROUBLES)
    fear, step, deed = dice.one(FEARS)
    breakable, mend = dice.one(BREAKABLES)
    skill, failed = dice.one(SKILLS)
    gift, mishap, rescue = dice.one(GIFTS)
    guide, sign = dice.one(GUIDES)
    thing, color, seed = dice.one(THINGS), dice.one(COLORS), dice.one(SEEDS)
    return {
        "at": at, "place": place, "spot": spot, "spot2": spot2, "around": dice.one(("around", "near")),
        "thing": thing, "a_thing": article(thing), "shared": dice.one(SHARED), "color": color,
        "a_color": article(color), "food": dice.one(FOODS), "weather": dice.one(WEATHERS), "lure": dice.one(LURES),
        "seed": seed, "a_seed": article(seed),
        "baby": baby, "a_baby": article(baby), "stuck": stuck, "tool": tool, "fear": fear, "step": step, "deed": deed,
        "breakable": breakable, "mend": mend, "skill": skill, "failed": failed, "failed_too": failed,
        "gift": gift, "mishap": mishap, "rescue": rescue, "guide": guide, "a_guide": article(guide), "sign": sign,
    }  # fmt: skip


def capitalised(slots: dict[str, str]) -> dict[str, str]:
    """The slots and, under a capital letter, their forms for the start of a sentence."""
    return slots | {key.capitalize(): text[0].upper() + text[1:] for key, text in slots.items()}


def story(number: int) -> str:
    """The story of this number; people, plot and words all follow from it."""
    dice = Dice(number)
    slots = capitalised(people(dice) | things(dice))
    plot = dice.one(list(PLOTS))
    sentences = [dice.say(dice.one(beat), slots) for beat in PLOTS[plot]]
    opening, closing = dice.say(dice.one(OPENINGS), slots), dice.say(dice.one(CLOSINGS), slots)
    middle = 2 + dice.roll(2)
    paragraphs = ([opening, *sentences[:middle]], sentences[middle:5], [*sentences[5:], closing])
    text = "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)
    return shorten_later(text, slots["friend"])


def shorten_later(text: str, name: str) -> str:
    """`Snip the bear` is called that once, then `Snip`."""
    before, full, after = text.partition(name)
    return before + full + after.replace(name, name.partition(" the ")[0])
