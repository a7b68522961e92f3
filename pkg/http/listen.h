// Listening TCP sockets on a port of a range, and the address that others reach
// us at. Thread-safety: any thread. Nothing here blocks but for a name look-up.
#pragma once

#include <cstdint>
#include <string>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"

namespace bim::http {

struct TcpListener {
  base::UniqueFd fd;
  uint16_t port = 0;
};

// Listens on the first free port of [first, last] (0 to 0: any free one), tried
// from a place that moves on, so that a port is not used again at once. `ip`: a
// numeric address; empty: all of them, IPv6 too. No other socket shares the
// port. RESOURCE_EXHAUSTED: all are taken; INVALID_ARGUMENT: `ip` is no
// address.
base::Result<TcpListener> ListenTcp(const std::string& ip, uint16_t first,
                                    uint16_t last);

// Our own numeric IP on the way to "host:port" (nothing is sent).
base::Result<std::string> OwnAddressTowards(const std::string& host_port);

// "host:port" or "[v6]:port", host not empty, port 1 to 65535.
struct HostPort {
  std::string host;
  uint16_t port = 0;
};
base::Result<HostPort> ParseHostPort(const std::string& text);
// With brackets around an IPv6 address.
std::string JoinHostPort(const std::string& host, uint16_t port);

}  // namespace bim::http
