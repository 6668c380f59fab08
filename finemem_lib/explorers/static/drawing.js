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
function render({model, el}) {
  const plot = document.createElement("div");
  plot.setAttribute("role", "img");
  el.append(plot);
  let busy = Promise.resolve();
  const draw = () => busy = busy.then(async () => {
    const {data, layout} = structuredClone(model.get("spec"));
    if (!data) return;
    const title = new DOMParser().parseFromString(layout.title.text, "text/html").body.textContent;
    plot.setAttribute("aria-label", `${title}. ${layout.meta.alt}`);
    const first = !plot.data;
    plot.style.height = `${layout.height}px`;
    await (await plotly(model)).react(plot, data, {...layout, uirevision: "kept"},
      model.get("config"));
    if (first) plot.on("plotly_click", ({points: [point]}) =>
      model.send({trace: point.curveNumber, point: point.pointNumber}));
  }).catch(error => { plot.textContent = `The figure cannot be drawn: ${error}`; });
  model.on("change:spec", draw);
  draw();
  return () => model.off("change:spec", draw);
}
export default {render};
