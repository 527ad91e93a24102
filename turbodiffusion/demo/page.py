"""Writes the page of what the demo world knows: `python -m turbodiffusion.demo.page docs/demo-world.md`."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from turbodiffusion.demo import words
from turbodiffusion.demo.bake import CELL, FRAMES, PACKAGES
from turbodiffusion.demo.factors import HELD_OUT_SHARE, MOTIONS, NATURAL
from turbodiffusion.demo.scenes import SCENES
from turbodiffusion.demo.subjects import KIND_MOTIONS, KIND_SCENES, RELEASE, SUBJECTS, Subject, named
from turbodiffusion.files import write_file

INTRO = """# The demo world

<!-- written by `python -m turbodiffusion.demo.page docs/demo-world.md`: change turbodiffusion/demo, not this page -->

The data that the small model in this package is trained on: short clips of one subject, sometimes two, that move
through a drawn scene, rendered while training and described in English, Chinese or both. A prompt made of the words
below is inside the model's world; any other prompt gets a notice that names what comes nearest, and still a video.
`turbodiffusion models demo` lists what the shipped model knows.

```
an orange cat runs to the right through a sunny garden
一只橙色的猫在阳光明媚的花园里向右奔跑
```

Say it in this order: subject, action, setting, light, camera, style. Everything but the subject and the action may be
left out. A subject can also run after small ones (butterflies, a chick, a ball), and these prompts are drawn more often
than chance would:

```
一位时尚女性走在东京街头，街道两旁是温暖发光的霓虹灯
一只橙色的猫在阳光明媚的花园里追逐蝴蝶
樱花瓣随风飘落，女孩抬头微笑，镜头缓缓推进
树叶随风摇摆，云层快速移动
```

## Make it yourself

```bash
python -m turbodiffusion.demo.bake --out .cache/demo-world     # downloads and packs the art, once
python -m turbodiffusion.demo.preview --out outputs/sheet.png  # a contact sheet of random clips; --wishes: these four
```

Baking needs npm and some 730 MB of downloads (pinned versions, hashes checked); it leaves `atlas.npz` of some 19
MB. `--subjects release` bakes the subjects of the shipped model alone (11 MB), `--subjects cat,dog,car` any others. The
art is not part of this repository. Training renders from the atlas with `turbodiffusion.demo.renderer.World`, on a CPU
or a GPU.
"""


def _shipped() -> list[str]:
    model = json.loads((Path(__file__).parent / "model" / "model.json").read_text(encoding="utf-8"))
    return [f"{row.name} {row.chinese}" for row in named(model["about"]["subjects"])]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def once(names: Iterable[str]) -> str:
    """The names in order, each once, separated by commas."""
    return ", ".join(dict.fromkeys(names))


def _subjects() -> str:
    head = ("subject", "Chinese", "its own colour", "kind", "release", "lives in, when not where its kind does")

    def paint(row: Subject) -> str:
        return (row.colour or "several") + ("" if row.paintable else " (only)")

    rows = (
        (r.name, f"一{r.measure}{r.chinese}", paint(r), r.kind, "yes" if r.name in RELEASE else "", once(r.scenes))
        for r in SUBJECTS
    )
    return table(head, rows)


def _motions() -> str:
    ways = "Walking, running and flying go left or right; flying also up or down."
    rows = (
        (motion, kind or "any", once(third for third, _ in verbs), once(chinese))
        for motion in MOTIONS
        for (kind, name), (verbs, chinese) in words.VERBS.items()
        if name == motion
    )
    return f"{ways}\n\n{table(('motion', 'said of', 'English', 'Chinese'), rows)}"


def _places() -> str:
    rows = []
    for name, scene in SCENES.items():
        article, noun, rest, _, chinese, particle = words.PLACES[name]
        english = " ".join(filter(None, (rest, article, noun)))
        rows.append((name, english, f"在{chinese}{particle}", "all" if scene.lights else "its own"))
    return table(("scene", "English", "Chinese", "light and weather"), rows)


def _other_words() -> str:
    places = {name: ([rest for rest, _ in english], chinese) for name, (english, chinese) in words.OTHER_PLACES.items()}
    rows = [
        (name, said, once(english), once(chinese))
        for said, group in (
            ("name", words.SYNONYMS),
            ("clothes", words.WEARS),
            ("place", places),
            ("beside it", words.DETAILS),
        )
        for name, (english, chinese) in group.items()
    ]
    chases, chases_zh = words.CHASES
    rows.append(("run, after others", "motion", once(third for third, _ in chases), once(chases_zh)))
    return table(("of", "what", "English", "Chinese"), rows)


def _details() -> str:
    entries = (
        (name or default, once(english), once(chinese))
        for default, group in (
            ("still", words.CAMERAS),
            ("default", words.STYLES),
            ("", words.SIZES),
            ("", words.SPEEDS),
        )
        for name, (english, chinese) in group.items()
    )
    return table(("word", "English", "Chinese"), entries)


def page() -> str:
    """The whole page as Markdown."""
    kinds = ((kind, once(motions), once(KIND_SCENES[kind])) for kind, motions in KIND_MOTIONS.items())
    lights = (
        (name, once(filter(None, (before, *after))), once((before_zh, *after_zh)))
        for name, (before, after, before_zh, after_zh) in words.LIGHTS.items()
    )
    colours = ", ".join(f"{name} {chinese}" for name, chinese in words.COLOURS.items())
    held = (
        f"{HELD_OUT_SHARE:.0%} of all combinations of subject, colour and motion are never trained on. A hash of the "
        "three words decides (`factors.is_held_out`), so the choice is the same everywhere; evaluation prompts use "
        "only these."
    )
    art = (
        f"The animated pictures ({FRAMES} frames of {CELL} x {CELL} pixels each) are Microsoft's Fluent emoji "
        "(fluentui-emoji-animated, MIT) as packed by LobeHub (MIT); the scenes are drawn by this package, and so are "
        "the woman's and the girl's clothes."
    )
    sections = (
        (f"{len(SUBJECTS)} subjects", _subjects()),
        ("Kinds", table(("kind", "can", "lives in"), kinds)),
        (f"{len(MOTIONS)} motions", _motions()),
        (f"{len(SCENES)} scenes", _places()),
        ("Lights", table(("light", "English", "Chinese"), lights)),
        ("Colours", f"{colours}; or the subject's own ({NATURAL}).\n"),
        ("Camera, style, size, speed", _details()),
        ("Other words for the same", _other_words()),
        ("Held out", f"{held}\n"),
        ("The shipped model", f"It was trained on these: {once(_shipped())}.\n"),
        ("Art", "\n".join([art, "", *(f"- `{name}`" for name in PACKAGES), ""])),
    )
    return "\n".join([INTRO, *(f"## {title}\n\n{body}" for title, body in sections)])


def main() -> None:
    parser = argparse.ArgumentParser(description="write the page of what the demo world knows")
    parser.add_argument("path", type=Path, nargs="?", default=Path("docs/demo-world.md"))
    options = parser.parse_args()
    write_file(options.path, page().encode())
    print(options.path)


if __name__ == "__main__":
    main()
