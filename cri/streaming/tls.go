package streaming

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// TLS is the files that a server uses for TLS, in PEM. Cert and Key are both
// given or neither. With ClientCA, clients must present a certificate of it.
type TLS struct{ Cert, Key, ClientCA string }

// certificates are the files' contents, read anew when a file has changed.
type certificates struct {
	files TLS

	mu     sync.Mutex // guards what follows
	config *tls.Config
	read   [3]fileState // of Cert, Key and ClientCA when config was made, or could not be
}

// fileState tells a file's contents apart from what was there before.
type fileState struct {
	size     int64
	modified time.Time
}

// open reads the files; nil when there are none.
func (t TLS) open() (*certificates, error) {
	if t == (TLS{}) {
		return nil, nil
	}
	c := &certificates{files: t}
	c.read = c.states()
	var err error
	c.config, err = t.load()
	return c, err
}

func (t TLS) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("the certificate of the streaming server: %w", err)
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
		NextProtos: []string{"http/1.1"}, // upgrades are HTTP/1.1's
	}
	if t.ClientCA == "" {
		return cfg, nil
	}
	text, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("the CA of streaming clients: %w", err)
	}
	cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !cfg.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("the CA of streaming clients: %s holds no certificate", t.ClientCA)
	}
	return cfg, nil
}

func (c *certificates) states() (states [3]fileState) {
	for i, file := range []string{c.files.Cert, c.files.Key, c.files.ClientCA} {
		if st, err := os.Stat(file); err == nil {
			states[i] = fileState{size: st.Size(), modified: st.ModTime()}
		}
	}
	return states
}

// current is the configuration for a handshake. While changed files cannot be
// used, as between the writing of a certificate and of its key, it is the one before.
func (c *certificates) current(*tls.ClientHelloInfo) (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	states := c.states()
	if states == c.read {
		return c.config, nil
	}
	c.read = states
	if cfg, err := c.files.load(); err != nil {
		klog.ErrorS(err, "The streaming server goes on with the certificate that it has")
	} else {
		c.config = cfg
	}
	return c.config, nil
}

func (c *certificates) listen(inner net.Listener) net.Listener {
	return tls.NewListener(inner, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: c.current})
}
