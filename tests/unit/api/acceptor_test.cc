#include "pkg/api/acceptor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "pkg/api/address.h"
#include "pkg/api/listener.h"

namespace bim::api {
namespace {

using std::chrono::milliseconds;

base::UniqueFd ConnectTo(const std::string& address) {
  base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(ParseAddress(address)->port);
  EXPECT_EQ(
      ::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  return fd;
}

// What was accepted, by whom it was given to.
class Taken {
 public:
  void Add(base::UniqueFd fd) {
    std::lock_guard lock(mutex_);
    fds_.push_back(std::move(fd));
    changed_.notify_all();
  }
  bool WaitFor(size_t count, milliseconds limit = milliseconds(5000)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [&] { return fds_.size() >= count; });
  }
  void Drop() {
    std::lock_guard lock(mutex_);
    fds_.pop_back();
  }
  int Last() {
    std::lock_guard lock(mutex_);
    return fds_.back().get();
  }
  size_t Count() {
    std::lock_guard lock(mutex_);
    return fds_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<base::UniqueFd> fds_;
};

class AcceptorTest : public testing::Test {
 protected:
  std::unique_ptr<Acceptor> Start(size_t max_connections) {
    auto listener = Listen("127.0.0.1:0");
    EXPECT_TRUE(listener.ok());
    address_ = listener->address;
    std::vector<base::UniqueFd> listeners;
    listeners.push_back(std::move(listener->fd));
    return std::make_unique<Acceptor>(
        loop_, std::move(listeners),
        [this](base::UniqueFd fd) { taken_.Add(std::move(fd)); },
        Acceptor::Options{.max_connections = max_connections,
                          .pause = milliseconds(10)});
  }
  exec::EventLoop loop_;
  Taken taken_;
  std::string address_;
};

TEST_F(AcceptorTest, PreparesTheSockets) {
  const auto acceptor = Start(100);
  const base::UniqueFd client = ConnectTo(address_);
  ASSERT_TRUE(taken_.WaitFor(1));
  EXPECT_TRUE(::fcntl(taken_.Last(), F_GETFL) & O_NONBLOCK);
  EXPECT_TRUE(::fcntl(taken_.Last(), F_GETFD) & FD_CLOEXEC);
  int value = 0;
  socklen_t size = sizeof(value);
  ::getsockopt(taken_.Last(), IPPROTO_TCP, TCP_NODELAY, &value, &size);
  EXPECT_NE(value, 0);
}

TEST_F(AcceptorTest, HoldsTheLimitAndNoticesCloses) {
  const auto acceptor = Start(3);
  std::vector<base::UniqueFd> clients;
  for (int i = 0; i < 5; ++i) clients.push_back(ConnectTo(address_));
  ASSERT_TRUE(taken_.WaitFor(3));
  EXPECT_FALSE(taken_.WaitFor(4, milliseconds(100)));
  taken_.Drop();
  ASSERT_TRUE(taken_.WaitFor(3));
  EXPECT_FALSE(taken_.WaitFor(4, milliseconds(100)));
  taken_.Drop();
  taken_.Drop();
  ASSERT_TRUE(taken_.WaitFor(2));  // 1 left and the 5th
}

TEST_F(AcceptorTest, SurvivesRunningOutOfDescriptors) {
  const auto acceptor = Start(100);
  const base::UniqueFd first = ConnectTo(address_);
  ASSERT_TRUE(taken_.WaitFor(1));
  const base::UniqueFd second(::socket(AF_INET, SOCK_STREAM, 0));
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &old), 0);
  const rlimit none{1, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(ParseAddress(address_)->port);
  EXPECT_EQ(
      ::connect(second.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)),
      0);
  EXPECT_FALSE(taken_.WaitFor(2, milliseconds(100)));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_TRUE(taken_.WaitFor(2));
}

TEST_F(AcceptorTest, StopLeavesTheQueueToTheNext) {
  auto acceptor = Start(100);
  std::vector<base::UniqueFd> listeners = acceptor->Stop();
  ASSERT_EQ(listeners.size(), 1u);
  EXPECT_TRUE(acceptor->Stop().empty());
  const base::UniqueFd client = ConnectTo(address_);
  EXPECT_FALSE(taken_.WaitFor(1, milliseconds(50)));
  const Acceptor next(loop_, std::move(listeners),
                      [this](base::UniqueFd fd) { taken_.Add(std::move(fd)); },
                      {});
  EXPECT_TRUE(taken_.WaitFor(1));
}

}  // namespace
}  // namespace bim::api
