// Requests of the official Node client; prints a JSON object of what it got: node openai_client.mjs URL MODEL
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "a-key", maxRetries: 0 });
const question = { model, messages: [{ role: "user", content: "发动机" }], temperature: 0, max_tokens: 8 };

const whole = await client.chat.completions.create(question);
let streamed = "", usage = null;
const stream = await client.chat.completions.create({ ...question, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
const runner = client.chat.completions.stream(question);
const final = await runner.finalChatCompletion();
const completion = await client.completions.create({ model, prompt: "发动机", temperature: 0, max_tokens: 8 });
const models = [];
for await (const card of client.models.list()) models.push(card.id);
const error = await client.chat.completions.create({ ...question, model: "no-such-model" }).catch((e) => e);
const aborted = new AbortController();
const long = await client.chat.completions.create({ ...question, max_tokens: 1000, stream: true }, { signal: aborted.signal });
for await (const _ of long) { aborted.abort(); break; }
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, usage: whole.usage,
  streamed, streamedUsage: usage, final: final.choices[0].message.content,
  completion: completion.choices[0].text, models,
  error: { class: error.constructor.name, status: error.status, code: error.code, param: error.param },
}));
