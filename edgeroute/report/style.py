"""CSS of the pages: system font, light and dark mode; on a phone only tables exceed the screen width, and they scroll."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b1b1f; --faint: #d9d9e0; --dim: #5a5a66; }
@media (prefers-color-scheme: dark) { :root { --back: #16171a; --ink: #e6e6ea; --faint: #3a3b42; --dim: #a5a6b0; } }
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; }
figure { margin: 1.5rem 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.hint { display: none; }
.wide { overflow-x: auto; background:
  linear-gradient(90deg, var(--back) 1.5rem, transparent) local,
  linear-gradient(270deg, var(--back) 1.5rem, transparent) right local,
  linear-gradient(90deg, var(--faint), transparent .8rem), linear-gradient(270deg, var(--faint), transparent .8rem) right;
  background-repeat: no-repeat; }
@media (max-width: 40rem) { .hint { display: block; color: var(--dim); font-size: .9rem; margin: .5rem 0 0; } }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child { text-align: left; }
th { font-weight: 400; }
li { font-size: .9rem; }
"""
"""Base style."""
EVALUATION = """
body { max-width: 66rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p, ul, dl { max-width: 46rem; margin: .5rem 0; }
.dim, figcaption, dt { color: var(--dim); font-size: .9rem; }
.verdict { border-left: .3rem solid var(--ink); padding: .2rem .8rem; margin: 1rem 0; }
.held { --tone: #1f6f3a; } .broken { --tone: #b3261e; } .open { --tone: #7a5200; }
@media (prefers-color-scheme: dark) { .held { --tone: #7fd699; } .broken { --tone: #ff9b92; } .open { --tone: #f0c060; } }
.verdict { border-color: var(--tone, var(--ink)); } .verdict strong, .sign { color: var(--tone, var(--ink)); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; max-width: none;
  margin: 1rem 0; }
.tiles div { border: 1px solid var(--faint); border-radius: .4rem; padding: .5rem .8rem; }
.tiles dd { margin: 0; }
.tiles dd:first-of-type { font-size: 1.4rem; line-height: 1.3; }
.tiles dd + dd { color: var(--dim); font-size: .9rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 2.5rem; }
figure { margin: 1rem 0; max-width: 34rem; }
table { width: auto; min-width: min(100%, 30rem); font-variant-numeric: tabular-nums; margin: .5rem 0; }
thead th { color: var(--dim); font-size: .9rem; }
.facts { min-width: 0; }
.facts td { text-align: left; white-space: normal; }
"""
"""Evaluation page, appended to `STYLE`."""
CELL_CLASS = "edgeroute-report"
"""Of the element in a notebook."""
CELL = f"""
.{CELL_CLASS} {{ --back: transparent; --ink: currentcolor; --dim: currentcolor; --faint: rgba(128, 128, 128, .4);
  max-width: 66rem; overflow-wrap: anywhere; font-family: system-ui, sans-serif; line-height: 1.5; }}
.{CELL_CLASS} .title {{ font-size: 1.3rem; font-weight: 600; }}
.{CELL_CLASS} .dim, .{CELL_CLASS} figcaption, .{CELL_CLASS} dt, .{CELL_CLASS} .tiles dd + dd {{ opacity: .75; }}
.{CELL_CLASS} .wide {{ background: none; }}
.{CELL_CLASS} .held {{ --tone: #2e8b57; }} .{CELL_CLASS} .broken {{ --tone: #d9483b; }} .{CELL_CLASS} .open {{ --tone: #b07d1c; }}
.{CELL_CLASS} .verdict strong {{ color: inherit; }}
"""
"""In a notebook, whose colours are not the system's: the text's own, and tones that are seen on light and on dark."""
