// Render the templates of Ollama's Modelfiles: a line of standard input is {"Template", "Messages"}, a line of
// standard output the prompt as a JSON string.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	input, output := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for input.More() {
		var given struct {
			Template string
			Messages []Message
		}
		if err := input.Decode(&given); err != nil {
			panic(err)
		}
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(given.Template))
		var prompt bytes.Buffer
		if err := parsed.Execute(&prompt, given); err != nil {
			panic(err)
		}
		output.Encode(prompt.String())
	}
}
