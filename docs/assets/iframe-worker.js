// A page opened from file:// may not start a Worker. The search then runs in a hidden frame that answers like one.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = new URL(url, location.href).href;
      script.onload = () => {
        this.deliver = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
        this.waiting.splice(0).forEach(this.deliver);
      };
      inside.document.documentElement.append(script);
      this.frame = frame;
    }

    postMessage(data) {
      this.deliver ? this.deliver(data) : this.waiting.push(data);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
