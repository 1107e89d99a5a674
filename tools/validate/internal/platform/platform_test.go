package platform

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const valid = `variables:
  - name: region
    description: Where the cluster runs.
    source: var.location
    sample: westeurope
`

func TestLoad(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string // line field: message
	}{
		"valid":         {valid, nil},
		"empty":         {"# nothing yet\n", nil},
		"unknown field": {valid + "    extra: x\n", []string{"6 : field extra not found"}},
		"unknown list":  {valid + "other: []\n", []string{"6 : field other not found"}},
		"missing":       {strings.Replace(valid, "    sample: westeurope\n", "", 1), []string{"2 variables[0].sample: the field is required"}},
		"bad name":      {strings.Replace(valid, "region", "1region", 1), []string{"2 variables[0].name: \"1region\" is not a name"}},
		"same name":     {valid + strings.TrimPrefix(valid, "variables:\n"), []string{"1 variables: two variables have the same name"}},
		"duplicate key": {valid + "    sample: x\n", []string{"6 sample: the key is already set at line 5"}},
		"wrong type":    {"variables: 7\n", []string{"1 : cannot unmarshal"}},
		"not YAML":      {"variables: [\n", []string{"2 : "}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, FileName), []byte(test.text), 0o644); err != nil {
				t.Fatal(err)
			}
			contract, findings, err := Load(root)
			if err != nil || contract == nil {
				t.Fatalf("got %v, %v", contract, err)
			}
			if len(findings) != len(test.want) {
				t.Errorf("got %+v, want %v", findings, test.want)
				return
			}
			for i, f := range findings {
				if got := fmt.Sprintf("%d %s: %s", f.Pos.Line, f.Field, f.Message); !strings.HasPrefix(got, test.want[i]) {
					t.Errorf("got %q, want %q", got, test.want[i])
				}
			}
		})
	}
}

func TestSamples(t *testing.T) {
	contract, findings := parse([]byte(valid))
	if len(findings) > 0 || contract.Samples()["region"] != "westeurope" {
		t.Errorf("got %v, %v", contract.Samples(), findings)
	}
	contract, _ = parse([]byte(strings.Replace(valid, "region", "a-b", 1)))
	if len(contract.Samples()) > 0 {
		t.Errorf("a name that Flux refuses has a sample: %v", contract.Samples())
	}
}

func TestNoContract(t *testing.T) {
	contract, findings, err := Load(t.TempDir())
	if contract != nil || findings != nil || err != nil {
		t.Errorf("got %v, %v, %v", contract, findings, err)
	}
}

func TestTooLarge(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, FileName), make([]byte, maxBytes+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(root); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}
