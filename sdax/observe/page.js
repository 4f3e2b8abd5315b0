"use strict";
{
  const tip = document.body.appendChild(document.createElement("div"));
  tip.id = "tip";
  const show = (event) => {
    const target = event.target.closest?.("[data-tip]");
    tip.style.display = target ? "block" : "none";
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const at = target.getBoundingClientRect();
    const left = event.clientX ?? at.left;
    tip.style.left = Math.max(8, Math.min(left + 10, innerWidth - tip.offsetWidth - 8)) + "px";
    const below = at.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.top = (below ? at.bottom + 6 : Math.max(4, at.top - tip.offsetHeight - 6)) + "px";
  };
  for (const name of ["pointermove", "focusin", "focusout"]) document.addEventListener(name, show);
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target?.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", open);
  open();
}
