function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}
function panelAround(model, plot) {  // what stands around a figure
  const panel = () => model.get("panel");
  const waiting = new Map();  // what the kernel is asked next: the last wish for each control
  let asked = false;
  const ask = (name, message) => { waiting.set(name, message); next(); };
  const next = () => {
    const [first] = waiting;
    if (asked || !first) return;
    asked = true;
    root.ariaBusy = "true";
    waiting.delete(first[0]);
    model.send(first[1]);
  };
  const rows = panel().controls.map(control => controlRow(control, ask, () => asked));
  const rare = rows.filter((_, place) => panel().controls[place].rare).map(row => row.element);
  const more = element("details", {}, element("summary", {textContent: "More controls"}), ...rare);
  const controls = element("div", {className: "finemem-controls"},
    element("b", {textContent: panel().title}),
    ...rows.map(row => row.element).filter(row => !rare.includes(row)),
    ...(rare.length ? [more] : []));
  let tabs = [];
  const tabOf = ([name, label], place, views) => element("button", {textContent: label, role: "tab",
    onclick: () => ask("view", {view: name}),
    onkeydown: ({key}) => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[key];
      const other = by && tabs[(place + by + views.length) % views.length];
      other?.focus();
      other?.click();
    }});
  const tabled = element("button", {textContent: "Show as table", className: "finemem-tabled",
    onclick: () => ask("table", {table: !panel().tabled})});
  const alert = element("div", {className: "finemem-alert", hidden: true});
  const caption = element("p"), table = element("div");
  const view = element("div", {className: "finemem-view", role: "tabpanel"}, plot, table, caption);
  const list = element("div", {className: "finemem-tabs", role: "tablist"});
  const root = element("div", {className: "finemem-explorer", role: "group",
    ariaLabel: panel().title,
    onkeydown: event => {  // plain keys are commands of JupyterLab, which would move its cell
      if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
    }}, element("div", {className: "finemem-columns"}, controls, element("div",
    {className: "finemem-pane"}, alert, element("div", {className: "finemem-bar"}, list, tabled),
    view)));
  let answers = panel().answers;
  const update = () => {
    const now = panel();
    if (now.answers !== answers) asked = false;
    answers = now.answers;
    const texts = model.get("texts");
    rows.forEach((row, place) =>
      row.update(now.controls[place], texts[row.name], waiting.has(row.name)));
    if (tabs.length !== now.views.length) list.replaceChildren(...tabs = now.views.map(tabOf));
    list.hidden = tabs.length < 2;
    now.views.forEach(([name, label], place) => {
      const open = name === now.view;
      tabs[place].ariaSelected = String(open);
      tabs[place].tabIndex = open ? 0 : -1;
      if (open) view.ariaLabel = label;
    });
    tabled.ariaPressed = String(now.tabled);
    plot.hidden = now.tabled;
    table.innerHTML = now.table;
    caption.textContent = now.caption;
    alert.hidden = !now.error;
    alert.role = now.error ? "alert" : null;
    alert.replaceChildren(...(now.error ? [
      element("b", {textContent: "This change failed; the figure shows the state before it."}),
      element("div", {textContent: now.error}), element("details", {},
        element("summary", {textContent: "Traceback"}), element("pre", {textContent: now.trace})),
    ] : []));
    next();
  };
  const fit = natural => {  // squeezed further, names would overlap; a figure still higher scrolls
    const room = parseFloat(getComputedStyle(view).maxHeight) - caption.offsetHeight - 16;
    return Math.round(Math.min(natural, Math.max(0.85 * natural, room || natural)));
  };
  const drawn = () => { root.ariaBusy = String(asked); };
  return {root, update, fit, drawn, stop: () => rows.forEach(row => row.stop())};
}
function controlRow(control, ask, busy) {
  const {name, label} = control, slider = control.kind === "slider";
  const input = element(slider ? "input" : "select", slider ? {type: "range", min: 0} : {});
  input.ariaLabel = label;
  const shown = element("output"), heading = element("span", {textContent: label});
  const play = element("button", {className: "finemem-play"});
  let texts = [], timer = null;
  const to = place => {
    const last = texts.length - 1;
    input[slider ? "value" : "selectedIndex"] = Math.max(0, Math.min(place, last));
    say();
    ask(name, {control: name, option: chosen()});
  };
  const chosen = () => slider ? Number(input.value) : input.selectedIndex;
  const say = () => {
    shown.textContent = texts[chosen()];
    if (slider) input.ariaValueText = texts[chosen()];
  };
  const stop = () => { clearInterval(timer); timer = null; sayPlay(); };
  const sayPlay = () => {
    play.textContent = timer ? "⏸" : "▶";
    play.ariaLabel = `${timer ? "Pause" : "Play"} ${label}`;
  };
  const toggle = () => {
    if (timer) return stop();
    if (chosen() === texts.length - 1) to(0);
    timer = setInterval(() => {
      if (!input.isConnected || chosen() === texts.length - 1) stop();
      else if (!busy()) to(chosen() + 1);
    }, 1000);
    sayPlay();
  };
  input.oninput = () => { if (timer) stop(); to(chosen()); };
  play.onclick = toggle;
  play.onkeydown = ({key}) => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[key];
    if (by) to(chosen() + by);
  };
  if (control.play) input.onkeydown = event => {
    if (event.key === " ") { event.preventDefault(); toggle(); }
  };
  sayPlay();
  const update = (now, options, moving) => {
    if (options !== texts && options.join("\n") !== texts.join("\n")) {
      texts = options;
      if (slider) input.max = texts.length - 1;
      else input.replaceChildren(...texts.map(text => element("option", {textContent: text})));
    }
    if (!moving) input[slider ? "value" : "selectedIndex"] = now.place;
    input.disabled = play.disabled = now.idle;
    say();
  };
  return {name, update, stop, element: element("div", {className: "finemem-control"},
    element("label", {}, element("span", {}, heading, ...(slider ? [" ", shown] : [])), input),
    ...(control.play ? [play] : []))};
}
