// Draws a chart when it comes into view, so that a page with many charts opens at once.
const drawn = new Set();
function draw(place) {
  if (drawn.has(place)) return;
  drawn.add(place);
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false});
}
const places = document.querySelectorAll(".figure");
const view = new IntersectionObserver(
  (entries) => entries.filter((one) => one.isIntersecting).forEach((one) => draw(one.target)),
  {rootMargin: "300px"});
places.forEach((place) => view.observe(place));
window.addEventListener("beforeprint", () => places.forEach(draw));

// The pictures of a slider lie in the page; one is shown at a time.
document.querySelectorAll(".slider").forEach((box) => {
  const pictures = JSON.parse(box.querySelector("script").textContent);
  const input = box.querySelector("input");
  const show = () => {
    const one = pictures[Number(input.value)];
    box.querySelector("img").src = one.address;
    box.querySelector("output").textContent = one.images.toLocaleString("en") + " images";
  };
  input.addEventListener("input", show);
});
