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
  let rows = [];
  const more = element("details"), controls = element("div", {className: "finemem-controls"});
  const arrange = described => {  // the rows of controls; those that stay keep what they hold
    const keys = described.map(({place, idle, ...control}) => JSON.stringify(control));
    if (rows.length && keys.join() === rows.map(row => row.key).join()) return;
    const former = new Map(rows.map(row => [row.key, row])), focused = document.activeElement;
    rows = described.map((control, place) => former.get(keys[place])
      ?? Object.assign(controlRow(control, ask, () => asked), {key: keys[place]}));
    for (const row of former.values()) if (!rows.includes(row)) row.stop();
    const rare = rows.filter((_, place) => described[place].rare).map(row => row.element);
    more.replaceChildren(element("summary", {textContent: "More controls"}), ...rare);
    controls.replaceChildren(element("b", {textContent: panel().title}),
      ...rows.map(row => row.element).filter(row => !rare.includes(row)),
      ...(rare.length ? [more] : []));
    if (controls.contains(focused)) focused.focus();
  };
  const views = tabList(name => ask("view", {view: name}));
  const tabled = element("button", {textContent: "Show as table", className: "finemem-tabled",
    onclick: () => ask("table", {table: !panel().tabled})});
  const alert = element("div", {className: "finemem-alert", hidden: true});
  const caption = element("p"), table = element("div");
  const view = element("div", {className: "finemem-view", role: "tabpanel"}, plot, table, caption);
  const around = panel().pages ? aroundAll(ask, panel) : null;
  const columns = element("div", {className: "finemem-columns"}, controls, element("div",
    {className: "finemem-pane"}, ...(around ? [around.notices] : []), alert,
    element("div", {className: "finemem-bar"}, views.element, tabled), view));
  const root = element("div", {className: "finemem-explorer", role: "group",
    ariaLabel: panel().title,
    onkeydown: event => {  // plain keys are commands of JupyterLab, which would move its cell
      if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
    }}, ...(around ? [around.element] : []), columns);
  let answers = panel().answers;
  const update = () => {
    const now = panel();
    if (now.answers !== answers) asked = false;
    answers = now.answers;
    const texts = model.get("texts");
    arrange(now.controls);
    rows.forEach((row, place) =>
      row.update(now.controls[place], texts[row.name], waiting.has(row.name)));
    view.ariaLabel = views.update(now.views, now.view);
    views.element.hidden = now.views.length < 2;
    around?.update(root);
    tabled.hidden = !now.views.length;
    tabled.ariaPressed = String(now.tabled);
    plot.hidden = now.tabled || !now.views.length;
    table.innerHTML = now.table;
    caption.textContent = now.caption;
    alert.hidden = !now.error;
    alert.role = now.error ? "alert" : null;
    alert.replaceChildren(...(now.error ? [
      element("b", {textContent: "This change failed; the figure shows the state before it."}),
      element("div", {textContent: now.error}), element("details", {},
        element("summary", {textContent: "Traceback"}), element("pre", {textContent: now.trace})),
    ] : []));
    alert.querySelector("details")?.toggleAttribute("hidden", !now.trace);
    next();
  };
  const scale = () => panel().projector ? PROJECTED : 1;
  const fit = natural => {  // squeezed further, names would overlap; a figure still higher scrolls
    const most = parseFloat(getComputedStyle(view).maxHeight) || (around ? view.clientHeight : NaN);
    const room = (most - caption.offsetHeight - 16) / scale();
    return Math.round(Math.min(natural, Math.max(0.85 * natural, room || natural)));
  };
  const drawn = () => { root.ariaBusy = String(asked); };
  if (around) {
    const say = () => around.say(model.get("status"));
    model.on("change:status", say);
    ask("address", {address: location.search});
  }
  return {root, update, fit, drawn, scale, stop: () => rows.forEach(row => row.stop())};
}
function tabList(choose) {  // arrow keys lead from tab to tab
  const list = element("div", {className: "finemem-tabs", role: "tablist"});
  let tabs = [], shown = "";
  const tabOf = ([name, label], place, all) => element("button", {textContent: label, role: "tab",
    onclick: () => choose(name),
    onkeydown: ({key}) => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[key];
      const other = by && tabs[(place + by + all.length) % all.length];
      other?.focus();
      other?.click();
    }});
  const update = (items, chosen) => {  // returns the label of the chosen tab
    if (shown !== JSON.stringify(items)) list.replaceChildren(...tabs = items.map(tabOf));
    shown = JSON.stringify(items);
    items.forEach(([name], place) => {
      tabs[place].ariaSelected = String(name === chosen);
      tabs[place].tabIndex = name === chosen ? 0 : -1;
    });
    return items.find(([name]) => name === chosen)?.[1] ?? "";
  };
  return {element: list, update};
}
const PROJECTED = 1.5;  // times the size of a figure on a projector
function aroundAll(ask, panel) {  // what stands around the explorers of the laboratory
  const pages = tabList(name => ask("page", {page: name}));
  pages.element.ariaLabel = "Explorers";
  const large = element("button", {textContent: "Large type", className: "finemem-large",
    onclick: () => ask("projector", {projector: !panel().projector})});
  const status = element("span", {className: "finemem-status", role: "status"});
  const notices = element("div", {className: "finemem-notices", role: "alert"});
  const bar = element("div", {className: "finemem-pages"}, pages.element, status, large);
  const update = root => {
    const {notices: said, projector, page, address} = panel();
    root.classList.add("finemem-laboratory");
    root.classList.toggle("finemem-projector", projector);
    document.documentElement.classList.toggle("finemem-projected", projector);
    pages.update(panel().pages, page);
    large.ariaPressed = String(projector);
    status.textContent = "";
    notices.hidden = !said.length;
    if (said.join() !== [...notices.children].map(one => one.textContent).join()) {
      notices.replaceChildren(...said.map(text => element("p", {textContent: text})));
    }
    if (panel().answers && location.search !== address) {
      const url = new URL(location.href);
      url.search = address;
      history.replaceState(null, "", url);
    }
  };
  return {element: bar, notices, update, say: text => { status.textContent = text; }};
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
