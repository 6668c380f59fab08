// Draws the figures of a notebook when they come near the screen; plotly.js is loaded before.
"use strict";
async function draw(place) {
  const {data, layout, frames, config} = JSON.parse(place.querySelector("script").textContent);
  place.replaceChildren();
  await Plotly.newPlot(place, {data, layout, frames, config: {...config, responsive: true}});
  place.dataset.drawn = "true";
}
const near = new IntersectionObserver(entries => {
  for (const {isIntersecting, target} of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    draw(target);
  }
}, {rootMargin: "400px"});
for (const place of document.querySelectorAll(".site-figure")) near.observe(place);
window.addEventListener("beforeprint", () => {
  for (const place of document.querySelectorAll(".site-figure:not([data-drawn])")) draw(place);
});
