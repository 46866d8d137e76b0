"""How the page looks."""

STYLE = """
:root { --ink: #1d2430; --soft: #5d6878; --line: #e3e7ed; --paper: #ffffff; --ground: #f5f7fa; --blue: #2f6fde; --green: #1d8a55; --red: #c43c3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b5; --line: #2b3340; --paper: #171c24; --ground: #0f1319; --blue: #6ea0ff; --green: #4cc38a; --red: #ff7b7b; } .mark { color: var(--ground) !important; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 80px; }
header { display: flex; gap: 32px; align-items: center; justify-content: space-between; margin-bottom: 28px; }
header figure { flex: none; margin: 0; } header img { max-width: 320px; border-radius: 12px; }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 8px; letter-spacing: -0.01em; } h2 { font-size: 19px; margin: 0 0 2px; }
.eyebrow { color: var(--blue); font-weight: 650; margin: 0; } .lead { color: var(--soft); margin: 0 0 14px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px; margin: 0 0 18px; }
.cards { display: flex; flex-wrap: wrap; gap: 10px; } .card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; } .card span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 550; font-size: 12.5px; } th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } tbody tr:last-child td { border-bottom: 0; }
.mark { display: inline-block; min-width: 58px; text-align: center; border-radius: 99px; padding: 1px 8px; font-size: 12px; font-weight: 600; color: #fff; }
.mark.met { background: var(--green); } .mark.missed { background: var(--red); } .mark.info { background: var(--soft); }
.bar { width: 220px; height: 9px; border-radius: 5px; background: var(--line); } .bar div { height: 100%; border-radius: 5px; background: var(--blue); } .bar.lost div { background: var(--red); opacity: .75; } .bar.part div { opacity: .4; }
.interval .axis { stroke: var(--line); stroke-width: 2; } .interval .span { stroke: var(--blue); stroke-width: 3; opacity: .45; } .interval circle { fill: var(--blue); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 14px; margin-top: 14px; align-items: start; } figure { margin: 0; } img { max-width: 100%; border-radius: 8px; background: #fff; }
code { font-size: 12.5px; background: var(--ground); padding: 1px 5px; border-radius: 5px; } details { margin: 4px 0 4px 14px; } summary { cursor: pointer; }
.lineage { margin: 2px 0 2px 14px; font-size: 13.5px; }
@media (max-width: 760px) { .pictures { grid-template-columns: 1fr; } header { flex-direction: column; align-items: flex-start; } .bar { width: 120px; } }
"""
