// A small HTTP/1.1 server on Beast: GET and HEAD, bodies from memory or from
// a file range (sendfile), keep-alive. The only place that knows Beast.
//
// Bounded: at most `max_connections` at once (further ones wait in the
// listen queue), request heads of at most 16 KiB, no request bodies (413),
// 30 s to send a head, 60 s without progress while sending; then the
// connection is closed. Handlers run on the worker pool, never on the loop.
// Thread-safety: Start and the destructor on one thread; the handler is called
// on many.
#pragma once

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
  std::string path;    // percent-decoded, begins with '/'; no query
  std::string query;   // raw, without '?'
  // Value of the Range header, empty when there is none.
  std::string range;
};

struct Response {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  // used when `file` is empty
  // A whole file as the body; the server answers a satisfiable single range
  // with 206, an unsatisfiable one with 416 and Content-Range: bytes */size.
  base::UniqueFd file;
  uint64_t file_size = 0;
};

using Handler = std::function<Response(const Request&)>;

class Server {
 public:
  struct Options {
    size_t max_connections = 256;
  };
  // Serves connections of `listener`, a listening TCP or unix socket, until
  // destroyed. `loop` and `pool` outlive the server.
  static base::Result<std::unique_ptr<Server>> Start(exec::EventLoop& loop,
                                                     exec::WorkerPool& pool,
                                                     base::UniqueFd listener,
                                                     Handler handler,
                                                     Options options);
  // Stops accepting, closes every connection, waits for running handlers.
  virtual ~Server() = default;

 protected:
  Server() = default;
};

}  // namespace bim::http
