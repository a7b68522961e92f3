#include "pkg/api/address.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "pkg/base/names.h"

namespace bim::api {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";
constexpr size_t kMaxUnixPath = sizeof(sockaddr_un{}.sun_path) - 1;

base::Status BadAddress(std::string_view text) {
  return base::InvalidArgumentError(
      "'" + base::Printable(text) +
      "' is not an address: expected host:port, [ipv6]:port, :port or "
      "unix:/path");
}

}  // namespace

base::Result<Address> ParseAddress(std::string_view text) {
  Address address;
  if (text.starts_with(kUnixPrefix)) {
    address.is_unix = true;
    address.path = text.substr(kUnixPrefix.size());
    if (!address.path.starts_with('/') || address.path.ends_with('/') ||
        address.path.find('\0') != std::string::npos) {
      return BadAddress(text);
    }
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return BadAddress(text);
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  if (host.starts_with('[')) {
    if (!host.ends_with(']') || host.size() < 3) return BadAddress(text);
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return BadAddress(text);
  }
  if (host.find_first_of("[]/ \t\n") != std::string_view::npos ||
      host.find('\0') != std::string_view::npos) {
    return BadAddress(text);
  }
  const auto [end, error] =
      std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc() || end != port.data() + port.size()) {
    return BadAddress(text);
  }
  address.host = host;
  return address;
}

base::Result<Address> ParsePeerAddress(std::string_view text) {
  base::Result<Address> address = ParseAddress(text);
  // What a host name or an IP address (with a zone) may hold.
  constexpr std::string_view kHostCharacters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%";
  if (!address.ok() || address->is_unix || address->host.empty() ||
      address->host.size() > 253 || address->port == 0 ||
      address->host.find_first_not_of(kHostCharacters) != std::string::npos) {
    return base::InvalidArgumentError(
        "'" + base::Printable(text) +
        "' is not the address of another daemon: expected host:port or "
        "[ipv6]:port");
  }
  return address;
}

std::string ToString(const Address& address) {
  if (address.is_unix) return std::string(kUnixPrefix) + address.path;
  const bool v6 = address.host.find(':') != std::string::npos;
  return (v6 ? "[" + address.host + "]" : address.host) + ":" +
         std::to_string(address.port);
}

base::Result<UnixPath> ShortUnixPath(const std::string& path) {
  UnixPath result;
  if (path.size() <= kMaxUnixPath) {
    result.path = path;
    return result;
  }
  const size_t slash = path.rfind('/');
  const std::string directory = path.substr(0, slash + 1);
  result.directory = base::UniqueFd(
      ::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!result.directory) {
    return base::ErrnoError(errno, "cannot open directory " + directory);
  }
  result.path = "/proc/self/fd/" + std::to_string(result.directory.get()) +
                path.substr(slash);
  if (result.path.size() > kMaxUnixPath) {
    return base::InvalidArgumentError("the name of the socket '" +
                                      path.substr(slash + 1) +
                                      "' is too long: at most 80 bytes");
  }
  return result;
}

sockaddr_un UnixSockaddr(const UnixPath& path) {
  BIM_CHECK(path.path.size() <= kMaxUnixPath);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.path.data(), path.path.size());
  return address;
}

}  // namespace bim::api
