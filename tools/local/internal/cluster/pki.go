package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// lifetime of the certificates. A cluster gets new ones each time it starts.
const lifetime = 30 * 24 * time.Hour

// identities are the users of the API server, each with a token that is random for every start: their kubeconfig's
// name, user name and groups, as the bootstrap policy of Kubernetes' RBAC knows them.
var identities = []struct{ name, user, groups string }{
	{"admin", "admin", "system:masters"},
	{"controller-manager", "system:kube-controller-manager", ""},
	{"flux", "flux-controllers", "system:masters"},
	{"kubelet", "system:node:" + NodeName, "system:nodes"},
	{"proxy", "system:kube-proxy", ""},
	{"scheduler", "system:kube-scheduler", ""},
}

// writePKI writes everything that identifies the cluster's parts to each other below dir: certificate authority, the
// API server's certificate, the key that signs service account tokens, tokens, and a kubeconfig for each identity.
// hosts are the names and addresses that the API server answers to; server is its URL for the components.
func writePKI(dir, server string, hosts []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	now := time.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "aks-platform-local"},
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	if err := issue(dir, "ca", ca, ca, caKey, caKey); err != nil {
		return err
	}
	leaves := map[string]*x509.Certificate{
		"apiserver": {
			Subject:     pkix.Name{CommonName: "kube-apiserver"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		},
		// What the API server shows to the kubelet for logs and exec.
		"apiserver-kubelet-client": {
			Subject:     pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			leaves["apiserver"].IPAddresses = append(leaves["apiserver"].IPAddresses, ip)
		} else {
			leaves["apiserver"].DNSNames = append(leaves["apiserver"].DNSNames, h)
		}
	}
	for name, cert := range leaves {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
		if err != nil {
			return err
		}
		cert.SerialNumber, cert.NotBefore, cert.NotAfter = serial, ca.NotBefore, ca.NotAfter
		cert.KeyUsage = x509.KeyUsageDigitalSignature
		if err := issue(dir, name, cert, ca, key, caKey); err != nil {
			return err
		}
	}
	// The service account issuer signs with RS256 as AKS does.
	saKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "service-account.key"), saKey); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(saKey.Public())
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "service-account.pub"), "PUBLIC KEY", public); err != nil {
		return err
	}

	var tokens strings.Builder
	for i, id := range identities {
		token := rand.Text()
		fmt.Fprintf(&tokens, "%s,%s,%d,%q\n", token, id.user, i, id.groups)
		if err := writeKubeconfig(filepath.Join(dir, id.name+".kubeconfig"), server, filepath.Join(dir, "ca.crt"), token); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte(tokens.String()), 0o600)
}

// issue signs cert for key and writes both as name.crt and name.key.
func issue(dir, name string, cert, parent *x509.Certificate, key *ecdsa.PrivateKey, signer crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", name, err)
	}
	if err := writePEM(filepath.Join(dir, name+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, name+".key"), key)
}

func writeKey(path string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

var kubeconfig = template.Must(template.New("kubeconfig").Parse(`apiVersion: v1
kind: Config
clusters:
  - name: aks-platform-local
    cluster:
      server: {{ .Server }}
      certificate-authority: {{ printf "%q" .CA }}
users:
  - name: user
    user:
      token: "{{ .Token }}"
contexts:
  - name: aks-platform-local
    context:
      cluster: aks-platform-local
      user: user
current-context: aks-platform-local
`))

func writeKubeconfig(path, server, ca, token string) error {
	var b strings.Builder
	if err := kubeconfig.Execute(&b, struct{ Server, CA, Token string }{server, ca, token}); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}
