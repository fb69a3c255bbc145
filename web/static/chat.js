// See the contract: this tab is being built.
export function mount(panel) {
  panel.textContent = "";
}
