// Workload is the program in every image that the tests deploy. It is static,
// so an image needs nothing else.
//
//	workload          serve HTTP on :8080: the host name at /, files under /data at /data/…
//	workload -sleep   wait for a signal to end
//	workload -once    exit 0 at once (init containers)
//
// Called as "setup" or "teardown" it makes or removes the folder $VOL_DIR: it is
// also the helper image of the cluster's local-path storage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	switch filepath.Base(os.Args[0]) {
	case "setup":
		return setUp(os.Getenv("VOL_DIR"))
	case "teardown":
		return tearDown(os.Getenv("VOL_DIR"))
	}
	sleep := flag.Bool("sleep", false, "wait for a signal instead of serving")
	once := flag.Bool("once", false, "exit at once")
	listen := flag.String("listen", ":8080", "address to serve on")
	data := flag.String("data", "/data", "folder whose files are served at /data/")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch {
	case *once:
		return nil
	case *sleep:
		<-ctx.Done()
		return nil
	}
	return serve(ctx, *listen, *data)
}

func serve(ctx context.Context, address, data string) error {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		name, err := os.Hostname()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, name)
	})
	routes.Handle("GET /data/", http.StripPrefix("/data/", http.FileServer(http.Dir(data))))
	server := &http.Server{Addr: address, Handler: routes, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		deadline, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := server.Shutdown(deadline); err != nil {
			log.Print(err)
		}
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func setUp(folder string) error {
	if folder == "" {
		return errors.New("VOL_DIR is not set")
	}
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	// The umask has taken bits away; volumes are for any user.
	return os.Chmod(folder, 0o777)
}

func tearDown(folder string) error {
	if folder == "" || filepath.Clean(folder) == "/" {
		return errors.New("VOL_DIR is not set")
	}
	return os.RemoveAll(folder)
}
