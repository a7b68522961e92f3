// What the tests of this room share: plain blocking sockets on the loopback, a
// server that plays a script, a sink that remembers.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "pkg/base/unique_fd.h"
#include "pkg/http/client.h"

namespace bim::http {

// A socket listening on 127.0.0.1 and its port.
inline std::pair<base::UniqueFd, uint16_t> ListenLocal(int backlog = 64) {
  base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::listen(fd.get(), backlog), 0);
  EXPECT_EQ(
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return {std::move(fd), ntohs(address.sin_port)};
}

inline base::UniqueFd ConnectLocal(uint16_t port, int flags = 0) {
  base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  const int result = ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
                               sizeof(address));
  EXPECT_TRUE(result == 0 || (flags & SOCK_NONBLOCK) != 0);
  return fd;
}

// One connection, blocking, with a deadline of 10 s for each call. Does not own
// the descriptor.
class Conn {
 public:
  explicit Conn(int fd) : fd_(fd) {}

  bool Send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      text.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  // Up to 64 KiB; empty at the end or when the peer has broken it.
  std::string Read() {
    pollfd wait{fd_, POLLIN, 0};
    if (::poll(&wait, 1, 10'000) != 1) return "";
    std::string text(64 * 1024, '\0');
    const ssize_t got = ::recv(fd_, text.data(), text.size(), 0);
    text.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return text;
  }
  // To the blank line; what follows stays for later.
  std::string ReadHead() {
    size_t end;
    while ((end = rest_.find("\r\n\r\n")) == std::string::npos) {
      const std::string more = Read();
      if (more.empty()) return std::exchange(rest_, "");
      rest_ += more;
    }
    std::string head = rest_.substr(0, end + 4);
    rest_.erase(0, end + 4);
    return head;
  }
  std::string ReadBytes(size_t count) {
    while (rest_.size() < count) {
      const std::string more = Read();
      if (more.empty()) break;
      rest_ += more;
    }
    std::string bytes = rest_.substr(0, count);
    rest_.erase(0, bytes.size());
    return bytes;
  }
  std::string ReadAll() {
    std::string all = std::exchange(rest_, "");
    for (std::string more; !(more = Read()).empty();) all += more;
    return all;
  }
  // Until the peer closes.
  void AwaitClose() { ReadAll(); }
  // Ends the connection by RST.
  void ResetAtClose() {
    const linger now{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  }
  int fd() const { return fd_; }

 private:
  const int fd_;
  std::string rest_;
};

// Plays `script` on each connection, one after the other, then closes it. The
// head of the request has been read before.
class ScriptedServer {
 public:
  using Script = std::function<void(Conn& conn, const std::string& request)>;

  explicit ScriptedServer(Script script) : script_(std::move(script)) {
    std::tie(listener_, port_) = ListenLocal();
    thread_ = std::thread([this] { Serve(); });
  }
  // Answers every request with `answer` and closes.
  explicit ScriptedServer(std::string answer)
      : ScriptedServer(
            [answer](Conn& conn, const std::string&) { conn.Send(answer); }) {}
  ~ScriptedServer() {
    stopping_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);
    {
      std::lock_guard lock(mutex_);
      if (current_ >= 0) ::shutdown(current_, SHUT_RDWR);
    }
    thread_.join();
  }

  uint16_t port() const { return port_; }
  std::string Url(std::string_view path = "/image") const {
    return "http://127.0.0.1:" + std::to_string(port_) + std::string(path);
  }
  std::vector<std::string> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void Serve() {
    while (!stopping_) {
      base::UniqueFd fd(
          ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!fd) return;
      {
        std::lock_guard lock(mutex_);
        if (stopping_) return;
        current_ = fd.get();
      }
      Conn conn(fd.get());
      const std::string head = conn.ReadHead();
      {
        std::lock_guard lock(mutex_);
        requests_.push_back(head);
      }
      script_(conn, head);
      std::lock_guard lock(mutex_);
      current_ = -1;
      fd.Reset();
    }
  }

  const Script script_;
  base::UniqueFd listener_;
  uint16_t port_ = 0;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  int current_ = -1;
  std::vector<std::string> requests_;
  std::thread thread_;
};

class RecordingSink : public Sink {
 public:
  base::Status OnHead(const ResponseHead& head) override {
    EXPECT_FALSE(this->head.has_value());
    this->head = head;
    return head_status;
  }
  base::Status OnData(std::span<const std::byte> data) override {
    EXPECT_TRUE(head.has_value());
    EXPECT_FALSE(data.empty());
    EXPECT_LE(data.size(), 512u * 1024);
    if (on_data) on_data();
    if (!data_status.ok()) return data_status;
    bytes += data.size();
    if (body.size() < 1 << 20)
      body.append(reinterpret_cast<const char*>(data.data()), data.size());
    return base::OkStatus();
  }

  base::Status head_status;
  base::Status data_status;
  std::function<void()> on_data;
  std::optional<ResponseHead> head;
  std::string body;  // its first MiB
  uint64_t bytes = 0;
};

// A request that no proxy of the environment disturbs.
inline GetRequest DirectRequest(std::string url) {
  GetRequest request;
  request.url = std::move(url);
  request.proxy = "none";
  return request;
}

}  // namespace bim::http
