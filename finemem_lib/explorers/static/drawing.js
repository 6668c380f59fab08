const KEY = Symbol.for("finemem.plotly");
function plotly(model) {  // one copy for all figures of a page, asked for when the first is drawn
  return globalThis[KEY] ??= new Promise(resolve => {
    model.on("msg:custom", async (message, buffers) => {
      if (message !== "plotly.js") return;
      const before = window.Plotly;
      const parts = ["const module = {exports: {}};", buffers[0], ";export default module.exports"];
      const url = URL.createObjectURL(new Blob(parts, {type: "text/javascript"}));
      const loaded = (await import(url)).default;
      URL.revokeObjectURL(url);
      window.Plotly = before;
      resolve(loaded);
    });
    model.send("plotly.js");
  });
}
const isObject = value => value && typeof value === "object" && !Array.isArray(value);
function share(old, now) {  // plotly works through every array that is another one, even an equal one
  if (Array.isArray(now)) return JSON.stringify(old) === JSON.stringify(now) ? old : now;
  if (isObject(now) && isObject(old)) {
    for (const key in now) now[key] = share(old[key], now[key]);
  }
  return now;
}
function copied(value) {  // plotly writes into objects, not into arrays of values
  if (Array.isArray(value)) return isObject(value[0]) ? value.map(copied) : value;
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, copied(part)]));
}
function render({model, el}) {
  const plot = element("div");
  plot.setAttribute("role", "img");
  const frame = model.get("panel").title ? panelAround(model, plot) : null;
  el.append(frame?.root ?? plot);
  let busy = Promise.resolve(), last = {data: [], layout: {}};
  const draw = () => busy = busy.then(async () => {
    const spec = model.get("spec");
    if (!spec.data || plot.hidden) return;
    spec.data.forEach((trace, place) => share(last.data[place], trace));
    share(last.layout, spec.layout);
    last = spec;
    const data = copied(spec.data), {meta, ...layout} = copied(spec.layout);
    const title = new DOMParser().parseFromString(layout.title.text, "text/html").body.textContent;
    plot.setAttribute("aria-label", `${title}. ${meta.alt}`);
    if (!plot.data) plot.replaceChildren();  // an error may stand there
    const scale = frame?.scale() ?? 1;
    const height = frame ? frame.fit(layout.height) : layout.height;
    plot.style.height = `${height}px`;
    Object.assign(plot.style, {width: `${100 / scale}%`, marginBottom: `${(scale - 1) * height}px`,
      transform: scale === 1 ? "" : `scale(${scale})`, transformOrigin: "0 0"});
    const uirevision = [model.get("panel").page, model.get("panel").view ?? "kept"].join(" ");
    const library = await plotly(model);
    const drawn = [plot, data, {...layout, height, uirevision}, model.get("config")];
    const anew = async () => {
      await library.newPlot(...drawn);
      plot.on("plotly_click", ({points: [point]}) =>
        model.send({trace: point.curveNumber, point: point.pointNumber}));
    };
    // plotly keeps margins of the figure before, which leave a lower one little room
    const alike = plot.data && plot.layout.height === height
      && plot.layout.uirevision === uirevision;
    await (alike ? library.react(...drawn) : anew());
  }).catch(async error => {
    (await plotly(model)).purge(plot);
    plot.textContent = `The figure cannot be drawn: ${error}`;
  })
    .then(() => frame?.drawn());
  const follow = () => { frame?.update(); draw(); };
  const event = frame ? "change:panel" : "change:spec";  // the panel comes with the figure
  model.on(event, follow);
  if (frame) window.addEventListener("resize", draw);
  follow();
  return () => {
    model.off(event, follow);
    window.removeEventListener("resize", draw);
    frame?.stop();
  };
}
export default {render};
