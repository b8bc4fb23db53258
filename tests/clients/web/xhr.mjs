// As much of a browser's XMLHttpRequest as grpc-web needs. Unlike the packages that there are, it hands over text while it
// arrives, without which a stream could only be read once it ended.

export class XMLHttpRequest {
  readyState = 0;
  status = 0;
  statusText = "";
  response = "";
  responseText = "";
  responseType = "";
  withCredentials = false;
  onreadystatechange = null;
  #headers = new Headers();
  #answer = new Headers();
  #given = new AbortController();

  open(method, url) {
    Object.assign(this, { method, url });
    this.#change(1);
  }

  setRequestHeader(name, value) {
    this.#headers.append(name, value);
  }

  getResponseHeader(name) {
    return this.#answer.get(name);
  }

  getAllResponseHeaders() {
    return [...this.#answer].map(([name, value]) => `${name}: ${value}\r\n`).join("");
  }

  abort() {
    this.#given.abort();
  }

  async send(body) {
    try {
      const { method, url } = this;
      const answer = await fetch(url, { method, headers: this.#headers, body, signal: this.#given.signal });
      Object.assign(this, { status: answer.status, statusText: answer.statusText });
      this.#answer = answer.headers;
      this.#change(2);
      const pieces = [];
      const text = new TextDecoder();
      for await (const piece of answer.body) {
        pieces.push(piece);
        if (this.responseType !== "arraybuffer") {
          this.response = this.responseText += text.decode(piece, { stream: true });
        }
        this.#change(3);
      }
      if (this.responseType === "arraybuffer") {
        const whole = Buffer.concat(pieces);
        this.response = whole.buffer.slice(whole.byteOffset, whole.byteOffset + whole.length);
      }
    } catch {
      this.status = 0;
    }
    this.#change(4);
  }

  #change(state) {
    this.readyState = state;
    this.onreadystatechange?.();
  }
}
