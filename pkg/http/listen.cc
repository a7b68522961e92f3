#include "pkg/http/listen.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "pkg/base/names.h"

namespace bim::http {
namespace {

constexpr int kSocketFlags = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
constexpr int kBacklog = 4096;

union SocketAddress {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
  sockaddr_storage storage;
};

base::Result<SocketAddress> Numeric(const std::string& ip) {
  SocketAddress address{};
  if (ip.empty()) {
    address.v6.sin6_family = AF_INET6;
    address.v6.sin6_addr = in6addr_any;
    return address;
  }
  if (::inet_pton(AF_INET, ip.c_str(), &address.v4.sin_addr) == 1) {
    address.v4.sin_family = AF_INET;
    return address;
  }
  if (::inet_pton(AF_INET6, ip.c_str(), &address.v6.sin6_addr) == 1) {
    address.v6.sin6_family = AF_INET6;
    return address;
  }
  return base::InvalidArgumentError("'" + base::Printable(ip) +
                                    "' is not a numeric IP address");
}

// Empty, with errno, when it cannot.
base::UniqueFd TryListen(SocketAddress address, uint16_t port) {
  // At the same place in both kinds.
  address.v6.sin6_port = htons(port);
  base::UniqueFd fd(::socket(address.any.sa_family, kSocketFlags, 0));
  if (!fd) return fd;
  const int on = 1;
  const int off = 0;
  // Not for sockets that listen: those keep their port to themselves.
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.any.sa_family == AF_INET6) {
    (void)::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  const socklen_t length = address.any.sa_family == AF_INET6
                               ? sizeof(address.v6)
                               : sizeof(address.v4);
  if (::bind(fd.get(), &address.any, length) != 0 ||
      ::listen(fd.get(), kBacklog) != 0) {
    const int error = errno;
    fd.Reset();
    errno = error;
  }
  return fd;
}

base::Result<uint16_t> PortOf(int fd) {
  SocketAddress address{};
  socklen_t length = sizeof(address);
  if (::getsockname(fd, &address.any, &length) != 0) {
    return base::ErrnoError(errno, "cannot tell where a socket is bound");
  }
  return ntohs(address.v6.sin6_port);
}

}  // namespace

base::Result<TcpListener> ListenTcp(const std::string& ip, uint16_t first,
                                    uint16_t last) {
  static std::atomic<uint32_t> next{0};
  BIM_ASSIGN_OR_RETURN(SocketAddress address, Numeric(ip));
  const uint32_t count = static_cast<uint32_t>(last) - first + 1;
  if (last < first || (first == 0 && last != 0)) {
    return base::InvalidArgumentError(
        "expected a range of ports, or 0 to 0, found " + std::to_string(first) +
        " to " + std::to_string(last));
  }
  const uint32_t from = next.fetch_add(1);
  int error = EADDRINUSE;
  for (uint32_t i = 0; i < count; ++i) {
    const auto port = static_cast<uint16_t>(first + (from + i) % count);
    base::UniqueFd fd = TryListen(address, port);
    if (!fd && ip.empty() &&
        (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL)) {
      address = SocketAddress{};
      address.v4.sin_family = AF_INET;  // a system without IPv6
      fd = TryListen(address, port);
    }
    if (fd) {
      BIM_ASSIGN_OR_RETURN(const uint16_t bound, PortOf(fd.get()));
      return TcpListener{std::move(fd), bound};
    }
    error = errno;
    if (error != EADDRINUSE && error != EACCES) break;
  }
  const std::string ports = first == last
                                ? "port " + std::to_string(first)
                                : "any port from " + std::to_string(first) +
                                      " to " + std::to_string(last);
  const std::string where = ip.empty() ? ports : ports + " of " + ip;
  if (error == EADDRINUSE) {
    return base::ResourceExhaustedError("cannot listen on " + where +
                                        ": in use");
  }
  return base::ErrnoError(error, "cannot listen on " + where);
}

base::Result<HostPort> ParseHostPort(const std::string& text) {
  const auto bad = [&] {
    return base::InvalidArgumentError(
        "expected host:port or [ipv6]:port, found '" + base::Printable(text) +
        "'");
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return bad();
  HostPort parsed;
  parsed.host = text.substr(0, colon);
  if (parsed.host.front() == '[') {
    if (parsed.host.back() != ']') return bad();
    parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
    in6_addr v6{};
    if (::inet_pton(AF_INET6, parsed.host.c_str(), &v6) != 1) return bad();
  } else if (parsed.host.find(':') != std::string::npos) {
    return bad();
  }
  // It becomes part of a URL.
  for (const char c : parsed.host) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == '.' || c == '-' ||
                       c == '_' || c == ':';
    if (!plain) return bad();
  }
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data() + colon + 1, end, parsed.port);
  if (read.ec != std::errc() || read.ptr != end || parsed.port == 0) {
    return bad();
  }
  return parsed;
}

std::string JoinHostPort(const std::string& host, uint16_t port) {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

base::Result<std::string> OwnAddressTowards(const std::string& host_port) {
  BIM_ASSIGN_OR_RETURN(const HostPort target, ParseHostPort(host_port));
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_DGRAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(
      target.host.c_str(), std::to_string(target.port).c_str(), &hints, &found);
  if (error != 0) {
    return base::UnavailableError("cannot find the address of " + host_port +
                                  ": " + ::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(
      found, &::freeaddrinfo);
  const base::UniqueFd fd(
      ::socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  SocketAddress own{};
  socklen_t length = sizeof(own);
  if (!fd || ::connect(fd.get(), found->ai_addr, found->ai_addrlen) != 0 ||
      ::getsockname(fd.get(), &own.any, &length) != 0) {
    return base::ErrnoError(errno, "no way to " + host_port);
  }
  char text[INET6_ADDRSTRLEN] = {};
  const void* const ip = own.any.sa_family == AF_INET6
                             ? static_cast<const void*>(&own.v6.sin6_addr)
                             : &own.v4.sin_addr;
  if (::inet_ntop(own.any.sa_family, ip, text, sizeof(text)) == nullptr) {
    return base::ErrnoError(errno, "cannot tell our own address");
  }
  return std::string(text);
}

}  // namespace bim::http
