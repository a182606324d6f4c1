# What each language runtime does for its users, printed; the same under every runtime.
set -u
cd "$HOME" 2>/dev/null || cd /tmp || exit
export HOME=/tmp/home GOCACHE=/tmp/go GOTOOLCHAIN=local
mkdir -p "$HOME" && cd "$HOME" || exit

node -e '
const { Worker } = require("worker_threads");
const { execSync } = require("child_process");
const fs = require("fs");
fs.writeFileSync("n.txt", "node");
const w = new Worker("require(\"worker_threads\").parentPort.postMessage(6 * 7)", { eval: true });
w.on("message", m => console.log("node", m, fs.readFileSync("n.txt", "utf8"), execSync("echo child").toString().trim()));
' || echo "node failed"

python3 -c '
import concurrent.futures, mmap, multiprocessing, sqlite3, subprocess, threading
with concurrent.futures.ThreadPoolExecutor(4) as pool: print("threads", sum(pool.map(int, "1234")))
m = mmap.mmap(-1, 4096); m[:2] = b"ok"
q = multiprocessing.get_context("fork").SimpleQueue()
p = multiprocessing.Process(target=q.put, args=(42,)); p.start(); p.join()
c = sqlite3.connect("p.db"); c.execute("create table t (a)"); c.commit()
print("python", m[:2].decode(), q.get(), subprocess.check_output(["echo", "child"]).decode().strip())
' || echo "python failed"

cat >Main.java <<'JAVA'
public class Main {
    public static void main(String[] a) throws Exception {
        var pool = java.util.concurrent.Executors.newFixedThreadPool(4);
        int sum = 0;
        var all = new java.util.ArrayList<java.util.concurrent.Future<Integer>>();
        for (int i = 0; i < 100; i++) { final int n = i; all.add(pool.submit(() -> n)); }
        for (var f : all) sum += f.get();
        pool.shutdown();
        var p = new ProcessBuilder("echo", "child").start();
        System.gc();
        System.out.println("java " + sum + " " + new String(p.getInputStream().readAllBytes()).trim());
    }
}
JAVA
java -Xmx128m Main.java || echo "java failed"

# Built elsewhere, as agents get their tools; Go's own compiler runs as well.
cat >main.go <<'GO'
package main

import (
	"fmt"
	"os/exec"
	"sync"
)

func main() {
	var group sync.WaitGroup
	var lock sync.Mutex
	sum := 0
	for i := 0; i < 1000; i++ {
		group.Add(1)
		go func(n int) { lock.Lock(); sum += n; lock.Unlock(); group.Done() }(i)
	}
	group.Wait()
	out, err := exec.Command("echo", "child").Output()
	fmt.Printf("go %d %s%v\n", sum, out, err)
}
GO
CGO_ENABLED=0 go build -o main main.go && ./main || echo "go failed"

chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync \
    --user-data-dir="$HOME/chromium" --dump-dom \
    'data:text/html,<p id=a></p><script>a.textContent="chromium "+6*7</script>' 2>chromium.log |
    grep -o 'chromium 42' || { echo "chromium failed"; tail -n 5 chromium.log; }
