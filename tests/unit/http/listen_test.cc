#include "pkg/http/listen.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <set>
#include <vector>

#include "tests/unit/http/sockets.h"

namespace bim::http {
namespace {

using base::Code;
using base::UniqueFd;
using ::testing::HasSubstr;

constexpr char kV4[] = "127.0.0.1";
constexpr uint16_t kRange = 6;

TcpListener Listen(const std::string& ip, uint16_t first, uint16_t last) {
  auto listener = ListenTcp(ip, first, last);
  EXPECT_TRUE(listener.ok()) << listener.status().ToString();
  return listener.ok() ? *std::move(listener) : TcpListener();
}

bool HasIpv6() {
  const UniqueFd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  return fd && ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address),
                      sizeof(address)) == 0;
}

// Connects to the loopback; empty when nobody listens there.
UniqueFd Connect(int family, uint16_t port) {
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(port);
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  v6.sin6_addr = in6addr_loopback;
  const int result =
      family == AF_INET
          ? ::connect(fd.get(), reinterpret_cast<sockaddr*>(&v4), sizeof(v4))
          : ::connect(fd.get(), reinterpret_cast<sockaddr*>(&v6), sizeof(v6));
  if (result != 0) fd.Reset();
  return fd;
}

// Whether a connection to the loopback comes out of `listener`.
bool Serves(const TcpListener& listener, int family = AF_INET) {
  const UniqueFd client = Connect(family, listener.port);
  if (!client) return false;
  pollfd wait{listener.fd.get(), POLLIN, 0};
  if (::poll(&wait, 1, 10'000) != 1) return false;
  const UniqueFd server(
      ::accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!server || !Conn(client.get()).Send("x")) return false;
  return Conn(server.get()).Read() == "x";
}

// Ports side by side that we all hold: nobody disturbs.
std::vector<TcpListener> HoldRange() {
  // Below those that the kernel gives to whoever asks for any.
  for (uint32_t i = 0; i < 2000; ++i) {
    const auto first = static_cast<uint16_t>(
        12'000 + (static_cast<uint32_t>(::getpid()) * 31 + i * 7) % 18'000);
    std::vector<TcpListener> held;
    while (held.size() < kRange) {
      const auto port = static_cast<uint16_t>(first + held.size());
      auto listener = ListenTcp(kV4, port, port);
      if (!listener.ok()) break;
      held.push_back(*std::move(listener));
    }
    if (held.size() == kRange) return held;
  }
  ADD_FAILURE() << "no free ports";
  return {};
}

TEST(ListenTest, AnyFreePort) {
  const TcpListener one = Listen(kV4, 0, 0);
  const TcpListener other = Listen(kV4, 0, 0);
  EXPECT_NE(one.port, 0);
  EXPECT_NE(other.port, 0);
  EXPECT_NE(one.port, other.port);
  EXPECT_TRUE(Serves(one));
  EXPECT_TRUE(Serves(other));
  // Not to children, and accept does not block.
  EXPECT_NE(::fcntl(one.fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(::accept(one.fd.get(), nullptr, nullptr), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST(ListenTest, TheOneThatIsFree) {
  auto held = HoldRange();
  ASSERT_EQ(held.size(), kRange);
  const uint16_t first = held.front().port;
  const uint16_t last = held.back().port;
  for (TcpListener& listener : held) {
    const uint16_t port = listener.port;
    listener = {};
    // Wherever it begins to look.
    listener = Listen(kV4, first, last);
    EXPECT_EQ(listener.port, port);
    EXPECT_TRUE(Serves(listener));
  }
}

TEST(ListenTest, AllAreTaken) {
  const auto held = HoldRange();
  ASSERT_EQ(held.size(), kRange);
  const uint16_t first = held.front().port;
  const uint16_t last = held.back().port;
  const auto range = ListenTcp(kV4, first, last);
  EXPECT_EQ(range.status().code(), Code::kResourceExhausted);
  EXPECT_EQ(range.status().message(),
            "cannot listen on any port from " + std::to_string(first) + " to " +
                std::to_string(last) + " of 127.0.0.1: in use");
  const auto one = ListenTcp(kV4, first, first);
  EXPECT_EQ(one.status().code(), Code::kResourceExhausted);
  EXPECT_EQ(one.status().message(), "cannot listen on port " +
                                        std::to_string(first) +
                                        " of 127.0.0.1: in use");
  // What is there goes on.
  for (const TcpListener& listener : held) EXPECT_TRUE(Serves(listener));
}

TEST(ListenTest, TheWholeRangeIsGiven) {
  auto held = HoldRange();
  ASSERT_EQ(held.size(), kRange);
  const uint16_t first = held.front().port;
  const uint16_t last = held.back().port;
  held.clear();
  std::set<uint16_t> ports;
  for (int i = 0; i < kRange; ++i) {
    held.push_back(Listen(kV4, first, last));
    ports.insert(held.back().port);
  }
  EXPECT_EQ(ports.size(), kRange);
  EXPECT_EQ(*ports.begin(), first);
  EXPECT_EQ(*ports.rbegin(), last);
  EXPECT_EQ(ListenTcp(kV4, first, last).status().code(),
            Code::kResourceExhausted);
}

TEST(ListenTest, NotTheSamePortAtOnce) {
  auto held = HoldRange();
  ASSERT_EQ(held.size(), kRange);
  const uint16_t first = held.front().port;
  const uint16_t last = held.back().port;
  held.clear();
  uint16_t before = 0;
  for (int i = 0; i < 4 * kRange; ++i) {
    const uint16_t port = Listen(kV4, first, last).port;  // closed at once
    EXPECT_NE(port, before);
    EXPECT_GE(port, first);
    EXPECT_LE(port, last);
    before = port;
  }
}

// A port whose connections are not long over can be listened on.
TEST(ListenTest, AgainBehindAConnection) {
  TcpListener listener = Listen(kV4, 0, 0);
  const uint16_t port = listener.port;
  {
    const UniqueFd client = Connect(AF_INET, port);
    ASSERT_TRUE(client);
    pollfd wait{listener.fd.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&wait, 1, 10'000), 1);
    UniqueFd server(
        ::accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(server);
    // Its side closes first and keeps the port in TIME-WAIT.
    server.Reset();
    EXPECT_EQ(Conn(client.get()).Read(), "");
  }
  listener = {};
  listener = Listen(kV4, port, port);
  EXPECT_EQ(listener.port, port);
  EXPECT_TRUE(Serves(listener));
}

TEST(ListenTest, NobodySharesThePort) {
  const TcpListener listener = Listen(kV4, 0, 0);
  // Whatever the other asks for.
  for (const int option : {0, SO_REUSEADDR, SO_REUSEPORT}) {
    for (const uint32_t ip : {INADDR_LOOPBACK, INADDR_ANY}) {
      const UniqueFd other(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const int on = 1;
      if (option != 0) {
        ASSERT_EQ(
            ::setsockopt(other.get(), SOL_SOCKET, option, &on, sizeof(on)), 0);
      }
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(ip);
      address.sin_port = htons(listener.port);
      const bool listens =
          ::bind(other.get(), reinterpret_cast<sockaddr*>(&address),
                 sizeof(address)) == 0 &&
          ::listen(other.get(), 1) == 0;
      EXPECT_FALSE(listens) << option << " " << ip;
      EXPECT_EQ(errno, EADDRINUSE);
    }
  }
  EXPECT_EQ(ListenTcp("", listener.port, listener.port).status().code(),
            Code::kResourceExhausted);
  EXPECT_EQ(ListenTcp("0.0.0.0", listener.port, listener.port).status().code(),
            Code::kResourceExhausted);
}

// Nor do we with one that would.
TEST(ListenTest, WeDoNotShareEither) {
  const UniqueFd other(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  for (const int option : {SO_REUSEADDR, SO_REUSEPORT}) {
    ASSERT_EQ(::setsockopt(other.get(), SOL_SOCKET, option, &on, sizeof(on)),
              0);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(other.get(), reinterpret_cast<sockaddr*>(&address), size),
            0);
  ASSERT_EQ(::listen(other.get(), 1), 0);
  ASSERT_EQ(
      ::getsockname(other.get(), reinterpret_cast<sockaddr*>(&address), &size),
      0);
  const uint16_t port = ntohs(address.sin_port);
  for (const char* ip : {kV4, "0.0.0.0", ""}) {
    EXPECT_EQ(ListenTcp(ip, port, port).status().code(),
              Code::kResourceExhausted)
        << ip;
  }
}

TEST(ListenTest, AllAddresses) {
  const TcpListener listener = Listen("", 0, 0);
  EXPECT_TRUE(Serves(listener, AF_INET));
  EXPECT_EQ(ListenTcp(kV4, listener.port, listener.port).status().code(),
            Code::kResourceExhausted);
  if (!HasIpv6()) GTEST_SKIP() << "no IPv6 here";
  EXPECT_TRUE(Serves(listener, AF_INET6));
  const auto v6 = ListenTcp("::1", listener.port, listener.port);
  EXPECT_EQ(v6.status().code(), Code::kResourceExhausted);
  const auto again = ListenTcp("", listener.port, listener.port);
  EXPECT_EQ(again.status().code(), Code::kResourceExhausted);
  EXPECT_EQ(
      again.status().message(),
      "cannot listen on port " + std::to_string(listener.port) + ": in use");
}

TEST(ListenTest, OneAddress) {
  const TcpListener v4 = Listen(kV4, 0, 0);
  EXPECT_TRUE(Serves(v4, AF_INET));
  if (!HasIpv6()) GTEST_SKIP() << "no IPv6 here";
  EXPECT_FALSE(Connect(AF_INET6, v4.port));
  const TcpListener v6 = Listen("::1", 0, 0);
  EXPECT_TRUE(Serves(v6, AF_INET6));
  EXPECT_FALSE(Connect(AF_INET, v6.port));
}

TEST(ListenTest, NoAddresses) {
  for (const char* ip :
       {"localhost", "127.0.0", "127.0.0.1 ", " 127.0.0.1", "127.0.0.256",
        "127.0.0.1:80", "[::1]", "::1%lo", "*", "1", "::g", "/tmp/x"}) {
    const auto listener = ListenTcp(ip, 0, 0);
    EXPECT_EQ(listener.status().code(), Code::kInvalidArgument) << ip;
    EXPECT_THAT(listener.status().message(),
                HasSubstr("'" + std::string(ip) + "'"));
  }
  EXPECT_EQ(ListenTcp(kV4, 2, 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(ListenTcp("", 65535, 0).status().code(), Code::kInvalidArgument);
}

TEST(ListenTest, AnAddressThatIsNotOurs) {
  // For documentation, nobody's.
  const auto listener = ListenTcp("192.0.2.1", 0, 0);
  EXPECT_FALSE(listener.ok());
  EXPECT_NE(listener.status().code(), Code::kResourceExhausted);
  EXPECT_THAT(listener.status().message(),
              HasSubstr("cannot listen on port 0 of 192.0.2.1"));
}

TEST(HostPortTest, Good) {
  struct Case {
    std::string text, host;
    uint16_t port;
  };
  const Case cases[] = {
      {"h:1", "h", 1},
      {"host:80", "host", 80},
      {"host:65535", "host", 65535},
      {"10.0.0.1:8000", "10.0.0.1", 8000},
      {"A-b_c.example:8000", "A-b_c.example", 8000},
      {"[::1]:8000", "::1", 8000},
      {"[::]:1", "::", 1},
      {"[fd00::a:B]:443", "fd00::a:B", 443},
      {"[::ffff:10.0.0.1]:443", "::ffff:10.0.0.1", 443},
  };
  for (const Case& c : cases) {
    const auto parsed = ParseHostPort(c.text);
    ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
    EXPECT_EQ(parsed->host, c.host) << c.text;
    EXPECT_EQ(parsed->port, c.port) << c.text;
    EXPECT_EQ(JoinHostPort(parsed->host, parsed->port), c.text);
  }
}

TEST(HostPortTest, Bad) {
  for (const std::string& text :
       std::vector<std::string>{"",
                                ":",
                                "h",
                                "h:",
                                ":80",
                                "80",
                                "h:0",
                                "h:65536",
                                "h:99999999999",
                                "h:-1",
                                "h:+80",
                                "h: 80",
                                "h:80 ",
                                "h:0x50",
                                "h:http",
                                "h:80:80",
                                "h:80/",
                                "h:8 0",
                                "::1:80",
                                "::1",
                                "fd00::1:8000",
                                "[::1]",
                                "[::1]:",
                                "[::1]:0",
                                "[::1]:65536",
                                "[::1]80",
                                "[::1:80",
                                "::1]:80",
                                "[]:80",
                                "[:80",
                                "[",
                                "]:80",
                                "[[::1]]:80",
                                "[::1]x:80",
                                "x[::1]:80",
                                "[::1%eth0]:80",
                                "[fe80::1%25eth0]:80",
                                "http://h:80",
                                "h/x:80",
                                "user@h:80",
                                "h?x:80",
                                "h#x:80",
                                "h h:80",
                                " h:80",
                                "h\\x:80",
                                "h%41:80",
                                "*:80",
                                "h,i:80",
                                "\xc3\xa4:80",
                                "h\n:80",
                                "h:80\n",
                                std::string("h\0:80", 5),
                                std::string("h:80\0", 5)}) {
    const auto parsed = ParseHostPort(text);
    EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument) << text;
    EXPECT_THAT(parsed.status().message(),
                HasSubstr("expected host:port or [ipv6]:port, found '"));
  }
  const auto odd = ParseHostPort("\n" + std::string(100'000, 'x'));
  EXPECT_LT(odd.status().message().size(), 200u);
  EXPECT_THAT(odd.status().message(), HasSubstr("'\\x0axxx"));
}

TEST(HostPortTest, EveryCharacterOfAHost) {
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == '.' || c == '-' ||
                       c == '_';
    EXPECT_EQ(ParseHostPort(std::string("a") + c + "b:80").ok(), plain) << byte;
  }
}

TEST(HostPortTest, Join) {
  EXPECT_EQ(JoinHostPort("h", 1), "h:1");
  EXPECT_EQ(JoinHostPort("10.0.0.1", 65535), "10.0.0.1:65535");
  EXPECT_EQ(JoinHostPort("::1", 80), "[::1]:80");
}

TEST(OwnAddressTest, TowardsTheLoopback) {
  // Nobody needs to listen there.
  const auto v4 = OwnAddressTowards("127.0.0.1:9");
  ASSERT_TRUE(v4.ok()) << v4.status().ToString();
  EXPECT_EQ(*v4, "127.0.0.1");
  const auto name = OwnAddressTowards("localhost:9");
  ASSERT_TRUE(name.ok()) << name.status().ToString();
  EXPECT_THAT(*name, ::testing::AnyOf("127.0.0.1", "::1"));
  if (!HasIpv6()) GTEST_SKIP() << "no IPv6 here";
  const auto v6 = OwnAddressTowards("[::1]:9");
  ASSERT_TRUE(v6.ok()) << v6.status().ToString();
  EXPECT_EQ(*v6, "::1");
}

// What it says is an address that we can listen on.
TEST(OwnAddressTest, IsOurs) {
  const auto own = OwnAddressTowards("127.0.0.1:9");
  ASSERT_TRUE(own.ok());
  EXPECT_TRUE(Serves(Listen(*own, 0, 0)));
}

TEST(OwnAddressTest, Bad) {
  for (const char* text : {"", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "::1",
                           "http://127.0.0.1:9"}) {
    EXPECT_EQ(OwnAddressTowards(text).status().code(), Code::kInvalidArgument)
        << text;
  }
  // No name can be as long; nobody is asked for it.
  EXPECT_EQ(OwnAddressTowards(std::string(2000, 'a') + ":9").status().code(),
            Code::kUnavailable);
}

}  // namespace
}  // namespace bim::http
