#include "pkg/api/listener.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "pkg/api/address.h"

namespace bim::api {
namespace {

TEST(ParseAddress, ReadsWhatIsWritten) {
  for (const char* text : {"127.0.0.1:9500", "[::1]:9500", ":9500", ":0",
                           "node-1.example:65535", "unix:/run/bim.sock"}) {
    const auto address = ParseAddress(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(ToString(*address), text);
  }
}

TEST(ParseAddress, RefusesTheRest) {
  for (const char* text :
       {"", "9500", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536",
        "127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1:95x", "::1:9500", "[::1]",
        "[]:1", "[::1:9500", "unix:", "unix:relative", "unix:/dir/",
        "http://h:1", "a b:1"}) {
    const auto address = ParseAddress(text);
    EXPECT_EQ(address.status().code(), base::Code::kInvalidArgument) << text;
  }
}

class ListenTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/bim-listen-XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string Sock() const { return "unix:" + directory_ + "/sock"; }
  std::string directory_;
};

bool CanConnect(const std::string& unix_path) {
  const auto path = ShortUnixPath(unix_path);
  if (!path.ok()) return false;
  const base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un name = UnixSockaddr(*path);
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name),
                   sizeof(name)) == 0;
}

TEST_F(ListenTest, TcpPortZeroAndPortInUse) {
  const auto first = Listen("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(first->address.starts_with("127.0.0.1:"));
  EXPECT_NE(first->address, "127.0.0.1:0");
  EXPECT_TRUE(::fcntl(first->fd.get(), F_GETFD) & FD_CLOEXEC);
  EXPECT_TRUE(::fcntl(first->fd.get(), F_GETFL) & O_NONBLOCK);
  int value = 1;
  socklen_t size = sizeof(value);
  ::getsockopt(first->fd.get(), SOL_SOCKET, SO_REUSEPORT, &value, &size);
  EXPECT_EQ(value, 0);

  const auto second = Listen(first->address);
  EXPECT_EQ(second.status(),
            base::FailedPreconditionError("cannot listen on " + first->address +
                                          ": Address already in use"));
  const std::string port = first->address.substr(first->address.rfind(':'));
  EXPECT_EQ(Listen(port).status().code(), base::Code::kFailedPrecondition);
}

TEST_F(ListenTest, AllAddressesAndIpv6) {
  const auto all = Listen(":0");
  ASSERT_TRUE(all.ok());
  const auto address = ParseAddress(all->address);
  ASSERT_TRUE(address.ok());
  const base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(address->port);
  EXPECT_EQ(
      ::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  if (const auto v6 = Listen("[::1]:0"); v6.ok()) {
    EXPECT_TRUE(v6->address.starts_with("[::1]:"));
  }
}

TEST_F(ListenTest, RefusesWhatIsNoAddress) {
  EXPECT_EQ(Listen("9500").status().code(), base::Code::kInvalidArgument);
  EXPECT_FALSE(Listen("203.0.113.7:0").ok());  // not of this machine
}

TEST_F(ListenTest, UnixModeAndInUse) {
  const mode_t old = ::umask(0);
  const auto first = Listen(Sock());
  ::umask(old);
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  EXPECT_EQ(first->address, Sock());
  EXPECT_EQ(*BoundAddress(first->fd.get()), Sock());
  struct stat info {};
  ASSERT_EQ(::stat((directory_ + "/sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_EQ(Listen(Sock()).status(),
            base::FailedPreconditionError("cannot listen on " + Sock() +
                                          ": in use by another process"));
  EXPECT_TRUE(CanConnect(directory_ + "/sock"));
}

TEST_F(ListenTest, UnixModeAsAskedWhateverTheUmask) {
  const mode_t old = ::umask(077);
  const auto listener = Listen(Sock(), {.unix_mode = 0666});
  ::umask(old);
  ASSERT_TRUE(listener.ok());
  struct stat info {};
  ASSERT_EQ(::stat((directory_ + "/sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0666u);
}

TEST_F(ListenTest, ReplacesAStaleUnixSocket) {
  { ASSERT_TRUE(Listen(Sock()).ok()); }  // closed, the file stays
  ASSERT_TRUE(std::filesystem::exists(directory_ + "/sock"));
  const auto again = Listen(Sock());
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_TRUE(CanConnect(directory_ + "/sock"));
}

TEST_F(ListenTest, LeavesOtherFilesAlone) {
  std::ofstream(directory_ + "/sock") << "precious";
  EXPECT_EQ(Listen(Sock()).status().code(), base::Code::kFailedPrecondition);
  EXPECT_EQ(std::filesystem::file_size(directory_ + "/sock"), 8u);
}

TEST_F(ListenTest, LongUnixPath) {
  const std::string deep = directory_ + "/" + std::string(120, 'd');
  EXPECT_EQ(Listen("unix:" + deep + "/sock").status().code(),
            base::Code::kNotFound);
  std::filesystem::create_directory(deep);
  {
    const auto listener = Listen("unix:" + deep + "/sock");
    ASSERT_TRUE(listener.ok()) << listener.status().ToString();
    EXPECT_TRUE(std::filesystem::is_socket(deep + "/sock"));
    EXPECT_TRUE(CanConnect(deep + "/sock"));
    EXPECT_EQ(Listen("unix:" + deep + "/sock").status().code(),
              base::Code::kFailedPrecondition);
  }
  EXPECT_TRUE(Listen("unix:" + deep + "/sock").ok());  // stale, replaced
  EXPECT_EQ(
      Listen("unix:" + deep + "/" + std::string(100, 's')).status().code(),
      base::Code::kInvalidArgument);
}

TEST_F(ListenTest, MissingDirectory) {
  EXPECT_EQ(Listen("unix:" + directory_ + "/none/sock").status().code(),
            base::Code::kNotFound);
}

}  // namespace
}  // namespace bim::api
