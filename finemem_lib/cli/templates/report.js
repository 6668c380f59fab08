const waiting = [...document.querySelectorAll("figure.plotly")];
const instant = {mode: "immediate", transition: {duration: 0}, frame: {duration: 0, redraw: true}};
function draw() {  // one after the other, so that the page answers while it fills
  const figure = waiting.shift();
  if (!figure) { document.body.dataset.drawn = "all"; return; }
  const spec = figure.spec = JSON.parse(figure.querySelector("script").textContent);
  spec.config = {...spec.config, responsive: true, displayModeBar: false};
  const plot = figure.querySelector(".plot");
  const own = structuredClone(spec);  // plotly writes into what it is given
  Plotly.newPlot(plot, own).then(() => {
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
  }).finally(() => setTimeout(draw));
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
draw();
