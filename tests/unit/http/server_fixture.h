// A server on a port of its own, and ways to talk to it.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "pkg/http/server.h"
#include "tests/unit/http/sockets.h"

namespace bim::http {

inline std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i)
    text[i] = static_cast<char>('a' + (i * 31 + i / 997) % 26);
  return text;
}

inline base::UniqueFd FileOf(std::string_view content) {
  base::UniqueFd fd(memfd_create("image", MFD_CLOEXEC));
  EXPECT_EQ(::write(fd.get(), content.data(), content.size()),
            static_cast<ssize_t>(content.size()));
  return fd;
}

// A sparse file: much to send, nothing to store.
inline base::UniqueFd HugeFile(uint64_t size) {
  base::UniqueFd fd(memfd_create("huge", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  return fd;
}

class ServerTest : public testing::Test {
 protected:
  void Start(Handler handler, Server::Options options = {}) {
    auto [listener, port] = ListenLocal(/*backlog=*/1024);
    port_ = port;
    auto server = Server::Start(loop_, pool_, std::move(listener),
                                std::move(handler), options);
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
  }
  std::string Url(std::string_view path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + std::string(path);
  }
  // All that the server says to `request` on a connection of its own.
  std::string Exchange(const std::string& request) {
    const base::UniqueFd fd = ConnectLocal(port_);
    Conn conn(fd.get());
    conn.Send(request);
    return conn.ReadAll();
  }
  std::string Fetch(const std::string& method, const std::string& target,
                    const std::string& lines = "") {
    return Exchange(method + " " + target + " HTTP/1.1\r\nHost: h\r\n" + lines +
                    "Connection: close\r\n\r\n");
  }

  exec::EventLoop loop_;
  exec::WorkerPool pool_{"test", 4};
  uint16_t port_ = 0;
  std::unique_ptr<Server> server_;
};

}  // namespace bim::http
