"""Draws what `tinymoe inspect` prints (terminal) or measures (report) as SVG: pictures.py terminal COMMAND|report.

Reads the output with 24-bit ANSI colours, or the JSON, from stdin and writes SVG to stdout. Widths do not depend on the
reader's fonts: every run of characters is stretched to the columns that it has on a terminal.
"""

import json
import re
import sys
from xml.sax.saxutils import escape

MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
SANS = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
BLOCKS = "▁▂▃▄▅▆▇█"


def svg(width, height, style, body):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style>{style}</style>{''.join(body)}</svg>\n"
    )


def number(x):
    """Coordinates to a tenth, without a trailing zero."""
    return f"{x:.1f}".rstrip("0").rstrip(".")


def text(x, y, words, width=None, cls=None, fill=None, anchor=None):
    """Words that start at x with their base line at y, stretched to a width if one is given."""
    attributes = f'x="{number(x)}" y="{number(y)}"'
    if width:
        attributes += f' textLength="{number(width)}" lengthAdjust="spacingAndGlyphs"'
    for key, value in [("class", cls), ("fill", fill), ("text-anchor", anchor)]:
        attributes += f' {key}="{value}"' if value else ""
    return f"<text {attributes}>{escape(words)}</text>"


def rect(x, y, width, height, fill, more=""):
    return f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" fill="{fill}"{more}/>'


def ink(colour):
    """Black or white, whichever reads better on #rrggbb (luminance by Rec. 709)."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 115 else "#fff"


# ---- Terminal


def runs(line):
    """(column, characters, bold, foreground, background) of each run of one style."""
    bold, fore, back, column = False, None, None, 0
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if not part.startswith("\x1b"):
            if part:
                yield column, part, bold, fore, back
            column += len(part)
            continue
        codes = [int(code or 0) for code in part[2:-1].split(";")]
        if codes[:2] == [38, 2]:
            fore = "#%02x%02x%02x" % tuple(codes[2:5])
        elif codes[:2] == [48, 2]:
            back = "#%02x%02x%02x" % tuple(codes[2:5])
        elif codes == [1]:
            bold = True
        elif codes == [0]:
            bold, fore, back = False, None, None
        else:
            sys.exit(f"pictures.py does not know the ANSI sequence {part!r}")


def terminal(command, output):
    cell, line_height, margin, bar = 7.4, 17, 14, 26
    lines = [f"\x1b[1m$ {command}\x1b[0m", *output.rstrip("\n").split("\n")]
    columns = max(100, *(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines))
    width, height = round(2 * margin + cell * columns), round(bar + 2 * margin + line_height * len(lines))
    body = [rect(0, 0, width, height, "#1b1f24", ' rx="8"')]
    body += [f'<circle cx="{16 + 16 * i}" cy="15" r="5" fill="{c}"/>' for i, c in enumerate(["#e66a5f", "#e0b44c", "#66b866"])]
    for row, line in enumerate(lines):
        y = bar + margin + line_height * row
        for column, characters, bold, fore, back in runs(line):
            x = margin + cell * column
            if back:
                body.append(rect(x, y, cell * len(characters), line_height - 1, back))
            for start, part in words(characters):
                at = x + cell * start
                if part[0] in BLOCKS:
                    body += [bars(at, y, cell, line_height, part)]
                else:
                    body.append(text(at, y + 13, part, cell * len(part), "b" if bold else None, fore))
    return svg(width, height, f"svg{{fill:#d7dbe0}}text{{font:12.3px {MONO};white-space:pre}}.b{{font-weight:700}}", body)


def words(characters):
    """(start, part): runs without two spaces in a row, and bars on their own."""
    for match in re.finditer(rf"[{BLOCKS}]+|[^\s{BLOCKS}]+(?: [^\s{BLOCKS}]+)*", characters):
        yield match.start(), match.group()


def bars(x, y, cell, height, part):
    """Block characters as one path: fonts draw them at different heights."""
    path = ""
    for i, block in enumerate(part):
        tall = (BLOCKS.index(block) + 1) / 8 * (height - 3)
        path += f"M{number(x + cell * i)} {number(y + height - 2)}v{number(-tall)}h{number(cell - 0.8)}v{number(tall)}z"
    return f'<path d="{path}" fill="#56b4e9"/>'


# ---- Report


def shade(ratio):
    """Blue below 1, orange above, white at 1; a quarter and four times are the ends."""
    from math import log2

    strength = max(-1.0, min(1.0, log2(ratio) / 2)) if ratio > 0 else -1.0
    end = (213, 94, 0) if strength > 0 else (0, 114, 178)
    return "#%02x%02x%02x" % tuple(round(255 + (c - 255) * abs(strength) * 0.85) for c in end)


def wrap(words_, room):
    """Lines of at most `room` characters."""
    lines = [""]
    for word in words_.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def head(data, body, width):
    facts = data["text"]
    body.append(text(28, 30, "tinymoe  routing report", cls="m"))
    body.append(text(28, 62, data["run"]["name"], cls="h1"))
    figures = [(f"{facts['bits_per_byte']:.3f}", "bits per byte")]
    if "ngram_bits_per_byte" in facts:
        figures.append((f"{facts['ngram_bits_per_byte']:.3f}", "n-gram baseline"))
    model = data["model"]
    figures += [
        (f"{facts['tokens']:,}", "tokens"),
        (f"{model['experts_per_token']} of {model['experts']}", "experts per token"),
        (f"{model['active_parameters'] / 1e6:.2f} M", f"of {model['parameters'] / 1e6:.2f} M parameters active"),
    ]
    for i, (value, name) in enumerate(figures):
        x = 28 + i * (width - 56) / len(figures)
        body += [text(x, 100, value, cls="n"), text(x, 118, name, cls="m")]
    y = 152
    body.append(text(28, y, "What stands out", cls="h2"))
    for place, fact in enumerate(data["facts"][:3], 1):
        for i, line in enumerate(wrap(fact["text"], 120)):
            y += 22
            body.append(text(28, y, (f"{place}.  " if i == 0 else "     ") + line))
    return y + 40


def coloured_text(data, body, y, width, layer):
    """The start of the first document, each token on the colour of its first choice in one layer."""
    excerpt, cell, line_height = data["texts"][0], 7.6, 22
    layers, chosen = len(data["layers"]), data["model"]["experts_per_token"]
    body.append(text(28, y, f"The text, each token in the colour of the expert that served it (layer {data['layers'][layer]['layer']})", cls="h2"))
    x, y, rows = 28, y + 16, 1
    for n, token in enumerate(excerpt["tokens"]):
        ends = "\n" in token
        shown = token.replace("\n", "").replace("\t", " ")
        if x + cell * len(shown) > width - 28:
            x, y, rows = 28, y + line_height, rows + 1
        if rows > 11:
            break
        if shown:
            colour = data["palette"][excerpt["experts"][(n * layers + layer) * chosen]]
            body.append(rect(x, y, cell * len(shown), line_height - 3, colour, ' rx="2"'))
            if shown.strip():
                lead = len(shown) - len(shown.lstrip())
                word = shown.strip()
                body.append(text(x + cell * lead, y + 14, word, cell * len(word), "t", ink(colour)))
            x += cell * len(shown)
        if ends and x > 28:
            x, y, rows = 28, y + line_height, rows + 1
    return y + line_height + 26


def heatmap(body, x, y, title, names, rows, labels, palette, name_width, cell):
    """Rows of ratios to an even share, with what is written in each cell, under the experts' colours."""
    body.append(text(x, y, title, cls="h2"))
    for e, colour in enumerate(palette):
        at = x + name_width + e * cell
        body.append(rect(at + 2, y + 12, cell - 4, 18, colour, ' rx="3"'))
        body.append(text(at + cell / 2, y + 25, str(e), cls="c", fill=ink(colour), anchor="middle"))
    for r, (name, row, label) in enumerate(zip(names, rows, labels)):
        top = y + 36 + r * 25
        body.append(text(x + name_width - 8, top + 16, name, anchor="end"))
        for e, (ratio, words_) in enumerate(zip(row, label)):
            colour = shade(ratio)
            body.append(rect(x + name_width + e * cell, top, cell - 1, 24, colour))
            body.append(text(x + name_width + (e + 0.5) * cell, top + 16, words_, cls="c", fill=ink(colour), anchor="middle"))
    return y + 36 + len(names) * 25


def report(data):
    width, body = 1000, []
    E, K = data["model"]["experts"], data["model"]["experts_per_token"]
    if E > 16 or not data["layers"]:
        sys.exit("pictures.py draws a report of a model with up to 16 experts")
    y = head(data, body, width)
    last = len(data["layers"]) - 1
    y = coloured_text(data, body, y, width, last)
    cell = 300 / E
    load = [[share * E for share in layer["load"]["share"]] for layer in data["layers"]]
    names = [f"layer {layer['layer']}" for layer in data["layers"]]
    left = heatmap(body, 28, y, "Load, as a multiple of a fair share", names, load, [[f"{v:.1f}" for v in row] for row in load], data["palette"], 74, cell)
    kinds = [(c["name"], data["layers"][last]["classes"]["input"][i]) for i, c in enumerate(data["classes"]) if c["tokens"] >= 20]
    shares = [row for _, row in kinds]
    title = f"Kinds of token that each expert gets (layer {data['layers'][last]['layer']})"
    right = heatmap(
        body, 470, y, title, [name for name, _ in kinds], [[share * E / K for share in row] for row in shares],
        [[f"{share:.0%}" for share in row] for row in shares], data["palette"], 160, (width - 28 - 470 - 160) / E,
    )
    height = round(max(left, right) + 24)
    style = (
        f"svg{{fill:#24292f}}text{{font:14px {SANS}}}.m{{font-size:13px;fill:#656d76}}.h1{{font-size:26px;font-weight:700}}"
        f".h2{{font-size:16px;font-weight:600}}.n{{font-size:22px;font-weight:600}}.t{{font:13px {MONO}}}.c{{font-size:12px}}"
    )
    frame = rect(0.5, 0.5, width - 1, height - 1, "#fff", ' rx="8" stroke="#d0d7de"')
    return svg(width, height, style, [frame, *body])


def main():
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind == "terminal" and len(sys.argv) == 3:
        print(terminal(sys.argv[2], sys.stdin.read()), end="")
    elif kind == "report" and len(sys.argv) == 2:
        print(report(json.load(sys.stdin)), end="")
    else:
        sys.exit(__doc__)


main()
