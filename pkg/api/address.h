// Where a server listens and a client connects: "host:port", "[v6]:port",
// ":port" or "unix:/path". Values and pure functions, but for ShortUnixPath.
#pragma once

#include <sys/un.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"

namespace bim::api {

struct Address {
  bool is_unix = false;
  std::string path;   // of a unix socket
  std::string host;   // without brackets; empty: all addresses
  uint16_t port = 0;  // 0: any free one (listening only)
  friend bool operator==(const Address&, const Address&) = default;
};

// INVALID_ARGUMENT says what is expected. Host names are taken as they are.
base::Result<Address> ParseAddress(std::string_view text);

// The API of another daemon, "host:port": an IP address or a host name, and a
// port that is not 0; no unix socket. INVALID_ARGUMENT.
base::Result<Address> ParsePeerAddress(std::string_view text);

// The text that ParseAddress reads.
std::string ToString(const Address& address);

// A unix socket's address that fits sockaddr_un (107 bytes): a longer path is
// reached through its directory, held open: /proc/self/fd/<directory>/<file>.
struct UnixPath {
  base::UniqueFd directory;  // keep it open as long as `path` is in use
  std::string path;
};
// NOT_FOUND and so on when the directory cannot be opened; INVALID_ARGUMENT
// when the file's name alone is too long.
base::Result<UnixPath> ShortUnixPath(const std::string& path);
// Precondition: the path came from ShortUnixPath.
sockaddr_un UnixSockaddr(const UnixPath& path);

}  // namespace bim::api
