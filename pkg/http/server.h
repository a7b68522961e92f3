// A small HTTP/1.1 server on Beast: GET, HEAD and DELETE, answers from memory,
// from parts of a file (sendfile) or made piece by piece, PUT, PATCH and POST
// whose bodies are taken piece by piece, keep-alive. The only place that knows
// Beast.
//
// Bounded: at most `max_connections` at once, request heads of at most 16 KiB
// (431), request bodies only where the handler takes them (else 413), 30 s to
// send a head (an idle kept-alive connection included), 60 s without progress
// while sending or while a body comes; then the connection is closed. When one
// connects beyond `max_connections`, the connection that has waited longest
// without a complete head of its first or next request is closed for it; while
// all have a request under way, it waits in the listen queue. Handlers, what
// takes or makes bodies, and sendfile run on the worker pool, never on the
// loop: a pool whose threads are all taken by long work (downloads, say) stops
// the serving, so give the server one of its own.
// Thread-safety: Start and the destructor on one thread, neither the loop's nor
// the pool's; the handler is called on many.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/rate_limiter.h"
#include "pkg/exec/turns.h"
#include "pkg/exec/worker_pool.h"

namespace bim::http {

struct Request {
  // "GET", "HEAD", "PUT", "PATCH", "POST" or "DELETE". Others get a 405, a GET,
  // HEAD or DELETE with a body a 413, before any handler sees them.
  std::string method;
  // Percent-decoded, begins with '/', no NUL, no query. "..", "//" and decoded
  // slashes are left as they are: it is a name to compare, not a path to open.
  std::string path;
  std::string raw_path;  // the same as it came
  std::string query;     // raw, without '?'
  // Value of the Range header, empty when there is none (or several). For
  // information: ranges of a `file` are answered by the server.
  std::string range;
  // All header fields, names in lower case, in the order they came.
  std::vector<std::pair<std::string, std::string>> fields;
  // Of a PUT, PATCH or POST; nullopt: the body is chunked.
  std::optional<uint64_t> content_length;

  // The value of a field (lower-case name) that came once; else empty.
  std::string_view Field(std::string_view name) const;
};

struct Response;

// Takes the body of a request. Called and destroyed on the pool (or, when the
// server stops, on the thread that destroys it), one call at a time.
class BodyTaker {
 public:
  // Destroyed without Finish when the server stops.
  virtual ~BodyTaker() = default;
  // The next bytes, at most 256 KiB. May block (backpressure: the next bytes
  // are read from the socket only afterwards). A failure ends the body:
  // Finish() is called with it, and the connection closes behind the answer.
  virtual base::Status OnData(std::span<const std::byte> data) = 0;
  // Once, and the last call. OK: the whole body came. UNAVAILABLE: the
  // connection broke, nothing came for 60 s, or what came is no chunk; the
  // answer is not sent then.
  virtual Response Finish(const base::Status& status) = 0;
};

// Makes the body of a response. Called and destroyed on the pool (or, when the
// server stops, on the thread that destroys it), one call at a time.
class BodyMaker {
 public:
  virtual ~BodyMaker() = default;
  // The next piece, of any length but not empty, or empty at the end. A
  // failure breaks the connection, so that the client sees a short body.
  virtual base::Result<std::string> Next() = 0;
};

// Bytes [begin, end) of a file.
struct FilePart {
  uint64_t begin = 0;
  uint64_t end = 0;
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
  // Not empty: `body`, then these parts of `file`, in order. No ranges, no
  // Accept-Ranges then.
  std::vector<FilePart> parts;
  // Instead of body and file: a body of unknown length (chunked; to an HTTP/1.0
  // client it ends with the connection). No ranges.
  std::unique_ptr<BodyMaker> maker;
  // For a PUT, PATCH or POST: who takes the body. Then nothing else of this
  // response is used but what BodyTaker::Finish returns. ("Expect:
  // 100-continue" is answered.) Without it a body is refused: this response is
  // sent, the rest of the request is drained (2 s at most), and the connection
  // closes.
  std::unique_ptr<BodyTaker> taker;
  // The answer (head and body) is sent once one of these turns is had, and
  // holds it until sent, or until the connection closes. Not had within
  // `turn_timeout`: 503 with Retry-After: 1 instead. A client that closes its
  // side meanwhile does not wait any more. While it has the turn, a client that
  // takes less than 4 KiB/s, averaged over 30 s (in which the server waited
  // for it, and not for a disk, a maker or the rate), is closed.
  std::shared_ptr<exec::Turns> turns;
  // With turns: called on the pool once the turn is had. What it returns is
  // sent instead of this response (its turns and its `later` mean nothing), so
  // that nothing large is made for those who wait.
  std::function<Response()> later;
  // Called on the pool before each slice of `file` is sent: a failure breaks
  // the connection, so that the client sees a short body.
  std::function<base::Status()> check;
  // The body (not the head) passes through it, in slices of at most 1 MiB and
  // about a sixteenth of a second; a change of the rate counts within 250 ms.
  std::shared_ptr<exec::RateLimiter> rate;
};

// May block. An exception becomes a 500.
using Handler = std::function<Response(const Request&)>;

class Server {
 public:
  struct Options {
    size_t max_connections = 256;
    std::chrono::milliseconds head_timeout{30'000};
    std::chrono::milliseconds send_timeout{60'000};
    std::chrono::milliseconds turn_timeout{20'000};
    // What a client with a turn must take, in bytes a second, averaged over one
    // window after another. (Far below the least rate a node may be held to:
    // several transfers share that.)
    uint64_t min_rate = 4 * 1024;
    std::chrono::milliseconds min_rate_window{30'000};
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
