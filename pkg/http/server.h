// A small HTTP/1.1 server on Beast: GET and HEAD, bodies from memory or from
// a file range (sendfile), keep-alive. The only place that knows Beast.
//
// Bounded: at most `max_connections` at once (further ones wait in the
// listen queue), request heads of at most 16 KiB (431), no request bodies
// (413), 30 s to send a head (an idle kept-alive connection included), 60 s
// without progress while sending; then the connection is closed. Handlers and
// sendfile run on the worker pool, never on the loop: a pool whose threads are
// all taken by long work (downloads, say) stops the serving, so give the server
// one of its own.
// Thread-safety: Start and the destructor on one thread, neither the loop's nor
// the pool's; the handler is called on many.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/worker_pool.h"

namespace bim::http {

struct Request {
  std::string method;  // "GET" or "HEAD"
  // Percent-decoded, begins with '/', no NUL, no query. "..", "//" and decoded
  // slashes are left as they are: it is a name to compare, not a path to open.
  std::string path;
  std::string query;  // raw, without '?'
  // Value of the Range header, empty when there is none (or several). For
  // information: ranges of a `file` are answered by the server.
  std::string range;
};

struct Response {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  // More header lines. Content-Length, Content-Type, Connection,
  // Transfer-Encoding and Date are the server's own and skipped here; line
  // breaks in values become spaces.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  // used when `file` is empty; never cut into ranges
  // A whole file as the body; the server answers a satisfiable single range
  // with 206, an unsatisfiable one with 416 and Content-Range: bytes */size.
  // If-Range is compared with the ETag (strongly) or Last-Modified in
  // `headers`; unequal, the whole file is sent. Should the file turn out
  // shorter than file_size, the connection is broken, so that the client sees a
  // short body.
  base::UniqueFd file;
  uint64_t file_size = 0;
};

// May block. An exception becomes a 500.
using Handler = std::function<Response(const Request&)>;

class Server {
 public:
  struct Options {
    size_t max_connections = 256;
    std::chrono::milliseconds head_timeout{30'000};
    std::chrono::milliseconds send_timeout{60'000};
  };
  // Serves connections of `listener`, a listening TCP or unix socket, until
  // destroyed. `loop` and `pool` outlive the server. INVALID_ARGUMENT when it
  // is no listening stream socket.
  static base::Result<std::unique_ptr<Server>> Start(exec::EventLoop& loop,
                                                     exec::WorkerPool& pool,
                                                     base::UniqueFd listener,
                                                     Handler handler,
                                                     Options options);
  // Stops accepting, closes every connection, waits for running handlers (not
  // for queued ones: they never run). Afterwards the handler is destroyed.
  virtual ~Server() = default;

 protected:
  Server() = default;
};

}  // namespace bim::http
