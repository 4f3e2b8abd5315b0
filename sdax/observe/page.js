"use strict";
{
  const tip = document.body.appendChild(document.createElement("div"));
  tip.id = "tip";
  const hide = () => { tip.style.display = "none"; };
  const show = (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (!target) return hide();
    tip.style.display = "block";
    tip.textContent = target.dataset.tip;
    const at = target.getBoundingClientRect();
    const left = event.clientX ?? at.left;
    tip.style.left = Math.max(8, Math.min(left + 10, innerWidth - tip.offsetWidth - 8)) + "px";
    const below = at.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.top = (below ? at.bottom + 6 : Math.max(4, at.top - tip.offsetHeight - 6)) + "px";
  };
  for (const name of ["pointermove", "focusin"]) document.addEventListener(name, show);
  for (const name of ["focusout", "wheel"]) document.addEventListener(name, hide, { passive: true });
  document.documentElement.addEventListener("pointerleave", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  const open = (hash) => {
    const target = hash && document.getElementById(hash.slice(1));
    if (target?.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", () => open(location.hash));
  // A link to where the page is already changes no hash.
  document.addEventListener("click", (event) => open(event.target.closest?.("a[href^='#']")?.hash));
  open(location.hash);
}
