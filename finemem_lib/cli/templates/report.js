const waiting = new Set(document.querySelectorAll("figure.plotly"));
const instant = {mode: "immediate", transition: {duration: 0}, frame: {duration: 0, redraw: true}};
async function unpacked(name) {
  const block = document.getElementById(`packed-${name}`);
  const bytes = Uint8Array.from(atob(block.textContent), letter => letter.charCodeAt(0));
  block.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
function draw(figure) {
  waiting.delete(figure);
  const {spec, tables} = contents[figure.id];
  figure.spec = spec;
  figure.querySelector("details.table").insertAdjacentHTML("beforeend", tables);
  spec.config = {...spec.config, responsive: true, displayModeBar: false};
  const plot = figure.querySelector(".plot");
  const own = structuredClone(spec);  // plotly writes into what it is given
  return Plotly.newPlot(plot, own).then(() => {
    if (!spec.frames) return;
    const group = document.getElementById(figure.dataset.explorer);
    plot.on("plotly_click", event => {
      const {curveNumber, pointNumber} = event.points[0];
      const values = meta(figure, group.at).clicks?.[curveNumber];
      const [place, row] = [pointNumber].flat().reverse();
      const to = (Array.isArray(values?.[row]) ? values[row] : values)?.[place];
      if (to != null) setTimeout(() => move(group, to));
    });
    return show(figure, group.at);
  });
}
let busy = false;
async function drawUnfolded() {  // one after the other, so that the page answers while it fills
  if (busy) return;
  busy = true;
  for (let figure; figure = [...waiting].find(one => !one.closest("details:not([open])"));) {
    await draw(figure);
    await new Promise(done => setTimeout(done));
  }
  busy = false;
  if (!waiting.size) document.body.dataset.drawn = "all";
}
function frame(figure, at) { return figure.spec.frames[figure.spec.layout.meta.states[at]]; }
function meta(figure, at) {
  return {...figure.spec.layout.meta, ...frame(figure, at).layout?.meta};
}
function show(figure, at) {  // drawing, caption, description and table of one state
  const plot = figure.querySelector(".plot");
  const {caption, alt} = meta(figure, at);
  const {name, layout} = frame(figure, at);
  figure.querySelector("figcaption").textContent = caption;
  plot.setAttribute("aria-label", `${plot.dataset.title}. ${alt}`);
  const tables = [...figure.querySelectorAll("[data-states]")];
  for (const table of tables) table.hidden = !table.dataset.states.split(" ").includes(name);
  plot.style.height = `${layout?.height ?? figure.spec.layout.height}px`;
  return Plotly.animate(plot, [name], instant);
}
function texts(group, level) {  // what a slider goes through: what there is below those before it
  const now = group.paths[group.at];
  return [...new Set(group.paths.filter(path => now.slice(0, level).every(
    (text, above) => path[above] === text)).map(path => path[level]))];
}
function nearest(group, wanted) {  // the state that keeps what it can of a path
  let left = group.paths.map((_, state) => state);
  wanted.forEach((text, level) => {
    const kept = left.filter(state => group.paths[state][level] === text);
    const first = group.paths[left[0]][level];
    left = kept.length ? kept : left.filter(state => group.paths[state][level] === first);
  });
  return left[0];
}
function turn(group, level, place) {
  const there = texts(group, level);
  const wanted = [...group.paths[group.at]];
  wanted[level] = there[Math.max(0, Math.min(place, there.length - 1))];
  move(group, nearest(group, wanted));
}
function move(group, at) {
  group.at = at;
  group.querySelectorAll("input").forEach((slider, level) => {
    const there = texts(group, level), now = group.paths[at][level];
    slider.max = there.length - 1;
    slider.value = there.indexOf(now);
    slider.setAttribute("aria-valuetext", now);
    group.querySelectorAll("output")[level].textContent = now;
  });
  for (const figure of document.querySelectorAll("figure.plotly"))
    if (figure.dataset.explorer === group.id && figure.spec) show(figure, at);
}
for (const group of document.querySelectorAll(".explorer")) {
  group.at = Number(group.dataset.start);
  group.paths = JSON.parse(group.dataset.paths);
  group.querySelectorAll("input").forEach((slider, level) => {
    slider.addEventListener("input", () => turn(group, level, Number(slider.value)));
    for (const button of slider.parentElement.querySelectorAll("button"))
      button.addEventListener("click", () => turn(
        group, level, Number(slider.value) + Number(button.dataset.by)));
  });
}
let contents;
unpacked("figures").then(async figures => {
  contents = JSON.parse(figures);
  const library = document.createElement("script");
  library.textContent = await unpacked("plotly");  // the policy names its hash
  document.head.append(library);
  document.addEventListener("toggle", drawUnfolded, true);
  drawUnfolded();
  let unfolded = [];
  window.addEventListener("beforeprint", () => {  // paper cannot be unfolded; figures stand for
    unfolded = [...document.querySelectorAll("details:not([open], .table)")];  // their tables
    for (const details of unfolded) details.open = true;
    [...waiting].forEach(draw);
  });
  window.addEventListener("afterprint", () => unfolded.forEach(details => details.open = false));
});
