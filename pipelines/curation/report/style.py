"""What the curation's pages add to the look and to the behaviour of the report's page."""

STYLE = """
[hidden] { display: none !important; }
nav { display: flex; flex-wrap: wrap; gap: 6px 14px; margin: 0 0 20px; font-size: 13.5px; } a { color: var(--blue); }
h3 { font-size: 15px; margin: 18px 0 6px; } h3 small, h4 small { color: var(--soft); font-weight: 450; } h4 { font-size: 13.5px; margin: 0 0 6px; }
.small { font-size: 12.5px; color: var(--soft); margin: 4px 0 0; overflow-wrap: anywhere; }
.note { border-left: 3px solid var(--blue); padding: 2px 0 2px 12px; margin: 10px 0; color: var(--soft); font-size: 14px; }
.funnel > div, .funnel > details > summary { display: grid; grid-template-columns: 14px 74px 220px 1fr auto; gap: 10px; align-items: center; padding: 6px 0; border-bottom: 1px solid var(--line); font-size: 14px; }
.funnel details { margin: 0; } .funnel summary { list-style: none; } .funnel summary::-webkit-details-marker { display: none; }
.funnel summary::before { content: "\\25b8"; color: var(--soft); } .funnel details[open] > summary::before { content: "\\25be"; } .funnel > div::before { content: ""; }
.funnel .bar { width: 100%; } .funnel details > div { padding: 4px 0 12px 24px; }
.sums { list-style: none; padding: 0; margin: 14px 0 0; font-size: 13.5px; } .sums li { padding: 3px 0; } .sums .mark { min-width: 64px; margin-right: 8px; }
.scroll + .tiles, .note + .tiles { margin-top: 14px; } .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 12px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 14px; } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 8px; border: 1px solid var(--line); border-radius: 10px; padding: 10px; align-content: start; }
.pair > p { grid-column: 1 / -1; margin: 0; }
.shot { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #10141b; border-radius: 6px; }
.shot.gone { display: flex; align-items: center; justify-content: center; text-align: center; background: var(--line); color: var(--soft); font-size: 11px; padding: 4px; }
figcaption { font-size: 12px; line-height: 1.35; color: var(--soft); margin-top: 3px; overflow-wrap: anywhere; } figcaption b { color: var(--ink); font-weight: 600; }
.find { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin: 14px 0 4px; font-size: 13.5px; }
input, select { font: inherit; color: var(--ink); background: var(--ground); border: 1px solid var(--line); border-radius: 8px; padding: 5px 9px; } input { flex: 1 1 220px; min-width: 0; }
.leaves { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 12px; } .leaf { border: 1px solid var(--line); border-radius: 10px; padding: 10px 12px; min-width: 0; }
.thumbs { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; margin-bottom: 8px; }
.trio { display: grid; grid-template-columns: auto 1fr auto; gap: 2px 8px; align-items: center; font-size: 12px; color: var(--soft); min-width: 190px; } .trio .bar { width: 100%; height: 7px; } .trio .n { color: var(--ink); }
.bar.plain div { background: var(--soft); opacity: .55; } .bar.asked div { background: #d08b1d; }
pre { font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--ground); border-radius: 8px; padding: 10px; margin: 6px 0; }
@media (max-width: 760px) { main { padding: 20px 12px 60px; } section { padding: 18px 14px; } .card { flex: 1 1 40%; }
  .funnel > div, .funnel > details > summary { grid-template-columns: 12px 60px 1fr auto; gap: 8px; font-size: 13px; } .funnel .bar { display: none; } .funnel details > div { padding-left: 0; }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 10px; } .pairs, .leaves { grid-template-columns: 1fr; } }
"""

SCRIPT = """
const words = document.querySelector('#words'), order = document.querySelector('#order'), shown = document.querySelector('#shown');
const groups = [...document.querySelectorAll('.group')];
function show() {
  const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean), key = order.value;
  const before = (a, b) => key === 'id' ? a.dataset.id - b.dataset.id : b.dataset[key] - a.dataset[key] || a.dataset.id - b.dataset.id;
  let count = 0;
  for (const group of groups) {
    const box = group.querySelector('.leaves'), leaves = [...box.children].sort(before);
    for (const leaf of leaves) { leaf.hidden = !wanted.every(word => leaf.dataset.words.includes(word)); count += !leaf.hidden; box.append(leaf); }
    group.hidden = leaves.every(leaf => leaf.hidden);
  }
  groups.sort((a, b) => before(a.querySelector('.leaf:not([hidden])') || a.querySelector('.leaf'), b.querySelector('.leaf:not([hidden])') || b.querySelector('.leaf')));
  for (const group of groups) group.parentNode.append(group);
  shown.textContent = count + ' shown';
}
if (words) { words.addEventListener('input', show); order.addEventListener('change', show); show(); }
"""
