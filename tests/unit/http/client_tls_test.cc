// https, against a real `openssl s_server` with a self-signed certificate.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/http/sockets.h"

extern char** environ;

namespace bim::http {
namespace {

using testing::HasSubstr;

// Starts a program with its output into a pipe that `out` reads.
pid_t Spawn(std::vector<std::string> words, const std::string& folder,
            base::UniqueFd& out) {
  int ends[2];
  EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  out = base::UniqueFd(ends[0]);
  const base::UniqueFd in(ends[1]);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  posix_spawn_file_actions_adddup2(&actions, in.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, in.get(), 2);
  pid_t pid = -1;
  EXPECT_EQ(
      posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

class HttpsGet : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/bim-https-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    for (const std::string pair : {"server", "other"}) {
      base::UniqueFd out;
      const pid_t made = Spawn(
          {"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
           "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
           "/CN=" + pair, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
           pair + ".key", "-out", pair + ".pem"},
          folder_, out);
      int status = -1;
      ASSERT_EQ(::waitpid(made, &status, 0), made);
      ASSERT_EQ(status, 0);
    }
    std::ofstream(folder_ + "/image")
        << "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    server_ = Spawn({"openssl", "s_server", "-accept", "127.0.0.1:0", "-cert",
                     "server.pem", "-key", "server.key", "-HTTP"},
                    folder_, output_);
    // "ACCEPT 127.0.0.1:PORT"
    Port();
  }
  void TearDown() override {
    if (server_ > 0) {
      ::kill(server_, SIGKILL);
      ::waitpid(server_, nullptr, 0);
    }
    std::filesystem::remove_all(folder_);
  }
  void Port() {
    std::string said;
    while (true) {
      const size_t begin = said.find("ACCEPT ");
      const size_t end = said.find('\n', begin);
      if (begin != std::string::npos && end != std::string::npos) {
        const std::string line = said.substr(begin, end - begin);
        port_ = line.substr(line.rfind(':') + 1);
        return;
      }
      pollfd wait{output_.get(), POLLIN, 0};
      ASSERT_EQ(::poll(&wait, 1, 10'000), 1) << said;
      char text[512];
      const ssize_t got = ::read(output_.get(), text, sizeof(text));
      ASSERT_GT(got, 0) << said;
      said.append(text, static_cast<size_t>(got));
    }
  }
  GetRequest To(const std::string& host, const std::string& path) const {
    return DirectRequest("https://" + host + ":" + port_ + path);
  }

  std::string folder_;
  base::UniqueFd output_;
  pid_t server_ = -1;
  std::string port_;
};

TEST_F(HttpsGet, CertificatesAreChecked) {
  {
    RecordingSink sink;
    const Outcome outcome = Get(To("127.0.0.1", "/image"), sink, {});
    EXPECT_EQ(outcome.failure, Failure::kPermanent);
    EXPECT_EQ(outcome.status.code(), base::Code::kFailedPrecondition);
    EXPECT_THAT(outcome.status.message(), HasSubstr("certificate is refused"));
  }
  {
    RecordingSink sink;
    GetRequest request = To("127.0.0.1", "/image");
    request.ca_file = folder_ + "/server.pem";
    const Outcome outcome = Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
    EXPECT_EQ(sink.body, "hello");
  }
  {  // trusted, but for another name
    RecordingSink sink;
    GetRequest request = To("localhost", "/image");
    request.ca_file = folder_ + "/server.pem";
    const Outcome outcome = Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kPermanent);
    EXPECT_THAT(outcome.status.message(), HasSubstr("certificate is refused"));
  }
  {
    RecordingSink sink;
    GetRequest request = To("127.0.0.1", "/image");
    request.ca_file = folder_ + "/other.pem";
    EXPECT_EQ(Get(request, sink, {}).failure, Failure::kPermanent);
  }
  {
    RecordingSink sink;
    GetRequest request = To("127.0.0.1", "/image");
    request.ca_file = folder_ + "/none.pem";
    const Outcome outcome = Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kPermanent);
    EXPECT_EQ(outcome.status.code(), base::Code::kInvalidArgument);
    EXPECT_THAT(outcome.status.message(), HasSubstr(request.ca_file));
  }
}

TEST(HttpsGetPlain, ServerWithoutTlsIsTransient) {
  auto [listener, port] = ListenLocal();
  std::jthread server([&listener = listener] {
    const base::UniqueFd fd(::accept(listener.get(), nullptr, nullptr));
    Conn conn(fd.get());
    conn.Read();
    conn.Send("HTTP/1.1 400 Bad Request\r\n\r\n");
  });
  RecordingSink sink;
  const Outcome outcome =
      Get(DirectRequest("https://127.0.0.1:" + std::to_string(port) + "/"),
          sink, {});
  EXPECT_EQ(outcome.failure, Failure::kTransient) << outcome.status.ToString();
  EXPECT_THAT(outcome.status.message(), HasSubstr("connecting"));
}

TEST(HttpsGetPlain, HandshakeHasTheConnectDeadline) {
  auto [listener, port] = ListenLocal();  // connects, and never answers
  GetRequest request =
      DirectRequest("https://127.0.0.1:" + std::to_string(port) + "/");
  request.deadlines.connect = std::chrono::milliseconds(300);
  RecordingSink sink;
  const Outcome outcome = Get(request, sink, {});
  EXPECT_EQ(outcome.failure, Failure::kTransient);
  EXPECT_EQ(outcome.status.code(), base::Code::kDeadlineExceeded);
}

}  // namespace
}  // namespace bim::http
