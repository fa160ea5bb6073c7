// Nodenet connects the pods of a test cluster: on every node it writes the CNI
// configuration for the node's pod range, keeps a route to every other node's
// pod range, and masquerades what leaves the pod network. It uses the node's own
// ip and iptables (the node's root is mounted at -host).
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount"

type node struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR string `json:"podCIDR"`
	} `json:"spec"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

func (n node) address() string {
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" && net.ParseIP(a.Address).To4() != nil {
			return a.Address
		}
	}
	return ""
}

func main() {
	self := flag.String("node", os.Getenv("NODE_NAME"), "name of this node")
	host := flag.String("host", "/host", "where the node's root is mounted")
	pods := flag.String("pod-subnet", os.Getenv("POD_SUBNET"), "address range of all pods")
	service := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	api := flag.String("api", "https://"+service, "address of the API server")
	every := flag.Duration("every", 3*time.Second, "time between two looks at the nodes")
	flag.Parse()
	for {
		if err := reconcile(*api, *self, *host, *pods); err != nil {
			log.Print(err)
		}
		time.Sleep(*every)
	}
}

func reconcile(api, self, host, pods string) error {
	nodes, err := list(api)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		switch {
		case n.Spec.PodCIDR == "":
			continue
		case n.Metadata.Name == self:
			if err := configure(host, n.Spec.PodCIDR); err != nil {
				return err
			}
			if err := masquerade(host, n.Spec.PodCIDR, pods); err != nil {
				return err
			}
		case n.address() != "":
			if err := run(host, "ip", "route", "replace", n.Spec.PodCIDR, "via", n.address()); err != nil {
				return err
			}
		}
	}
	return nil
}

func list(api string) ([]node, error) {
	token, err := os.ReadFile(filepath.Join(account, "token"))
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	client := http.Client{Timeout: 5 * time.Second, Transport: transport}
	request, err := http.NewRequest(http.MethodGet, api+"/api/v1/nodes", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("list nodes: %s", response.Status)
	}
	var answer struct {
		Items []node `json:"items"`
	}
	return answer.Items, json.NewDecoder(response.Body).Decode(&answer)
}

func configure(host, cidr string) error {
	text := fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "nodenet", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state",
    "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": %q}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`, cidr)
	path := filepath.Join(host, "etc/cni/net.d/10-nodenet.conflist")
	if present, err := os.ReadFile(path); err == nil && string(present) == text {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// The runtime watches the folder: it must never see half a file.
	draft := path + ".new"
	if err := os.WriteFile(draft, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(draft, path)
}

func masquerade(host, cidr, pods string) error {
	rule := []string{"POSTROUTING", "-s", cidr, "!", "-d", pods, "-m", "comment", "--comment", "nodenet", "-j", "MASQUERADE"}
	if run(host, "iptables", append([]string{"-w", "-t", "nat", "-C"}, rule...)...) == nil {
		return nil
	}
	return run(host, "iptables", append([]string{"-w", "-t", "nat", "-A"}, rule...)...)
}

func run(host string, name string, arguments ...string) error {
	command := exec.Command("/usr/sbin/"+name, arguments...)
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: host}
	command.Dir = "/"
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, arguments, err, output)
	}
	return nil
}
