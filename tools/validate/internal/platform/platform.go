// Package platform reads platform.yaml, the contract between Terraform, the manifests and the tools.
//
// The validator needs its variables: every ${name} in a manifest must be declared there, and the samples stand for the
// values that Terraform gives to a cluster. A repository without the file has no variables.
package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/go-playground/validator/v10"
	"go.yaml.in/yaml/v3"

	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/yamldoc"
)

// FileName is where the contract is, relative to the root.
const FileName = "platform.yaml"

const maxBytes = 1 << 20

// Contract is the content of platform.yaml.
type Contract struct {
	Variables []Variable `yaml:"variables" validate:"unique=Name,dive"`
}

// Variable is a ${name} that manifests may use.
type Variable struct {
	Name        string `yaml:"name" validate:"required,variable"`
	Description string `yaml:"description" validate:"required"`
	// Source is the expression in Terraform that gives the value.
	Source string `yaml:"source" validate:"required"`
	// Sample is a value of the right form. The validator renders with it.
	Sample string `yaml:"sample" validate:"required"`
}

// Samples returns the sample value of each variable.
func (c *Contract) Samples() map[string]string {
	samples := make(map[string]string, len(c.Variables))
	for _, v := range c.Variables {
		samples[v.Name] = v.Sample
	}
	return samples
}

// Invalid is the check for the contract itself.
var Invalid = &check.Check{
	ID:       "PF-001",
	Title:    "platform.yaml is not a valid contract",
	Severity: check.Error,
	Why: "Terraform and the validator read this file. What is wrong here is wrong for both, and an unknown field is " +
		"one that nobody reads.",
	Fix: "Correct the field. Each variable has a name, a description, a source and a sample.",
	Example: `variables:
  - name: 1st-name          # not a name that Flux can substitute
    description: Example.
    source: module.x.y
    sample: x`,
}

// Checks lists what this package finds.
var Checks = []*check.Check{Invalid}

// Load reads the contract of the repository at root. It returns nil for a repository that has none, and what is wrong
// with one that does not hold.
func Load(root string) (*Contract, []check.Finding, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, nil, fmt.Errorf("open the repository: %w", err)
	}
	defer dir.Close()
	info, err := dir.Stat(FileName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find %s: %w", FileName, err)
	}
	if info.Size() > maxBytes {
		return nil, nil, fmt.Errorf("%s is larger than %d bytes", FileName, maxBytes)
	}
	data, err := dir.ReadFile(FileName)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", FileName, err)
	}
	contract, findings := parse(data)
	return contract, findings, nil
}

func parse(data []byte) (*Contract, []check.Finding) {
	contract := new(Contract)
	docs, err := yamldoc.Parse(data)
	if syntax := (*yamldoc.SyntaxError)(nil); errors.As(err, &syntax) {
		return contract, []check.Finding{invalid(syntax.Line, "", syntax.Message)}
	}
	if len(docs) == 0 {
		return contract, nil
	}
	var findings []check.Finding
	for _, d := range yamldoc.Duplicates(docs[0]) {
		findings = append(findings, invalid(d.Line, d.Key, fmt.Sprintf("the key is already set at line %d", d.FirstLine)))
	}
	if len(findings) > 0 {
		return contract, findings
	}
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	dec.KnownFields(true)
	err = dec.Decode(contract)
	if typeErr := (*yaml.TypeError)(nil); errors.As(err, &typeErr) {
		for _, text := range typeErr.Errors {
			line, message := lineOf(text)
			findings = append(findings, invalid(line, "", message))
		}
	} else if err != nil {
		findings = append(findings, invalid(1, "", err.Error()))
	}
	findings = append(findings, validate(contract, docs[0])...)
	// Flux would refuse such a name again and again.
	contract.Variables = slices.DeleteFunc(contract.Variables, func(v Variable) bool { return !IsVariable(v.Name) })
	return contract, findings
}

func lineOf(text string) (line int, message string) {
	if _, err := fmt.Sscanf(text, "line %d:", &line); err != nil {
		return 1, text
	}
	_, message, _ = strings.Cut(text, ": ")
	return line, message
}

func invalid(line int, field, message string) check.Finding {
	return check.Finding{Check: Invalid, Pos: check.Position{File: FileName, Line: line}, Field: field, Message: message}
}

func validate(contract *Contract, doc yamldoc.Document) []check.Finding {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string { return f.Tag.Get("yaml") })
	if err := v.RegisterValidation("variable", func(l validator.FieldLevel) bool { return IsVariable(l.Field().String()) }); err != nil {
		panic(err) // the tag is a constant
	}
	var findings []check.Finding
	var invalidFields validator.ValidationErrors
	if !errors.As(v.Struct(contract), &invalidFields) {
		return nil
	}
	for _, e := range invalidFields {
		_, field, _ := strings.Cut(e.Namespace(), ".")
		place, _, _ := yamldoc.Lookup(doc.Root, yamldoc.ParsePath(field))
		findings = append(findings, invalid(place.Line, field, reason(e)))
	}
	return findings
}

func reason(e validator.FieldError) string {
	switch e.Tag() {
	case "required":
		return "the field is required"
	case "unique":
		return "two variables have the same name"
	case "variable":
		return fmt.Sprintf("%q is not a name that Flux substitutes: letters, digits and _ only, and no digit first", e.Value())
	default:
		return e.Error()
	}
}

// IsVariable says whether Flux accepts the text as the name of a variable.
func IsVariable(name string) bool {
	for i, r := range name {
		switch {
		case r == '_', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z':
		case '0' <= r && r <= '9' && i > 0:
		default:
			return false
		}
	}
	return name != ""
}
