// Accepts connections of listening sockets on the event loop and hands them on.
//
// Survives running out of descriptors or memory: it pauses and tries again.
// Bounded: of each listening socket at most `max_connections` of those accepted
// are open at a time, further ones wait in its queue (and none in another's:
// who floods a port does not lock out the unix socket). Closes are not reported
// by whom the sockets were given to; when the limit is reached the acceptor
// looks which of them are still the sockets that it accepted (descriptor and
// inode).
//
// Thread-safety: construct, Stop and destroy on one thread, not the loop's.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "pkg/base/unique_fd.h"
#include "pkg/exec/event_loop.h"

namespace bim::api {

class Acceptor {
 public:
  struct Options {
    size_t max_connections = 1024;
    // How long to wait when there are no descriptors, or the limit is reached.
    std::chrono::milliseconds pause{100};
  };
  // Gets non-blocking, close-on-exec sockets with TCP_NODELAY, on the loop's
  // thread; must not block.
  using OnConnection = std::function<void(base::UniqueFd)>;

  // `loop` outlives the acceptor. `listeners` are made non-blocking.
  Acceptor(exec::EventLoop& loop, std::vector<base::UniqueFd> listeners,
           OnConnection on_connection, Options options);
  // As Stop().
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // Accepts no more; no callback runs after it returned. Connections in the
  // listen queue stay there for whoever has the listening sockets next.
  // Returns the sockets, still listening; nothing on a second call.
  std::vector<base::UniqueFd> Stop();

  // After Stop, from any one thread: tells the callers behind the accepted
  // connections to make their next calls elsewhere (HTTP/2's GOAWAY). Calls
  // with stream numbers above `last_stream` are theirs to make again. To be
  // called when nothing is being written.
  static constexpr uint32_t kAnyStream = 0x7fffffff;
  void SendGoAway(uint32_t last_stream);
  // After Stop, from any one thread: shuts down the accepted connections that
  // are still open, so that whoever they were given to reads their end.
  void EndAccepted();

 private:
  struct Accepted {
    int fd;
    ino_t inode;
    // The descriptor is not another's by now.
    bool IsSame() const;
  };
  struct State;
  exec::EventLoop& loop_;
  std::shared_ptr<State> state_;
  std::vector<Accepted> accepted_;  // when it was stopped
};

}  // namespace bim::api
