// Opens listening sockets, TCP and unix.
//
// Blocks for a moment (resolving a host name, locking a directory): at start,
// not on the loop. Thread-safety: free functions without state.
#pragma once

#include <sys/types.h>

#include <string>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"

namespace bim::api {

struct ListenOptions {
  mode_t unix_mode = 0600;  // of a unix socket's file
  int backlog = 1024;
};

// A listening, non-blocking, close-on-exec socket.
struct Listener {
  base::UniqueFd fd;
  // Where a client reaches it, with the port that was chosen for port 0.
  std::string address;
};

// `address` as api::ParseAddress reads it. ":port" listens on all addresses,
// IPv6 and IPv4, or IPv4 alone where there is no IPv6. SO_REUSEADDR is set,
// SO_REUSEPORT is not: a second daemon on the port fails.
//
// The directory of a unix socket must exist. A socket file that nobody listens
// on is replaced; one that answers, and any other file, is left alone. Nothing
// removes the file later: the next Listen does.
//
// INVALID_ARGUMENT: not an address. FAILED_PRECONDITION: "cannot listen on
// 127.0.0.1:9500: Address already in use", or "... in use by another process".
// NOT_FOUND: no such directory or host. PERMISSION_DENIED.
base::Result<Listener> Listen(const std::string& address,
                              const ListenOptions& options = {});

// The address of a listening socket that was not opened here (inherited), as
// ParseAddress reads it.
base::Result<std::string> BoundAddress(int fd);

}  // namespace bim::api
