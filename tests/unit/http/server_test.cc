#include "pkg/http/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/un.h>

#include <atomic>
#include <latch>

#include "tests/unit/http/server_fixture.h"

namespace bim::http {
namespace {

using std::chrono::milliseconds;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr uint64_t kHuge = 1ull << 40;

class HttpServer : public ServerTest {
 protected:
  void StartDefault(Server::Options options = {}) {
    Start([this](const Request& request) { return Answer(request); }, options);
  }
  Response Answer(const Request& request) {
    Response response;
    if (request.path == "/file") {
      response.file = FileOf(content_);
      response.file_size = content_.size();
      response.content_type = "application/octet-stream";
      response.headers = {{"ETag", "\"tag\""},
                          {"Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"}};
    } else if (request.path == "/empty") {
      response.file = FileOf("");
    } else if (request.path == "/huge") {
      response.file = HugeFile(kHuge);
      response.file_size = kHuge;
    } else if (request.path == "/short") {
      response.file = FileOf("short");
      response.file_size = 100;
    } else if (request.path == "/throw") {
      throw 1;
    } else if (request.path == "/bad-status") {
      response.status = 7;
    } else if (request.path == "/no-content") {
      response.status = 204;
      response.body = "not sent";
    } else if (request.path == "/headers") {
      response.headers = {{"X-Mine", "a\r\nInjected: b"},
                          {"Content-Length", "999"},
                          {"connection", "upgrade"}};
    } else {
      response.body =
          request.method + " " + request.path + " ? " + request.query;
    }
    return response;
  }

  // Small enough to be quick, more than one slice and than a socket's buffer.
  const std::string content_ = Pattern((5 << 20) + 123);
};

TEST_F(HttpServer, WholeFileByOurClient) {
  StartDefault();
  RecordingSink sink;
  const Outcome outcome = Get(DirectRequest(Url("/file")), sink, {});
  EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
  EXPECT_EQ(sink.bytes, content_.size());
  EXPECT_TRUE(content_.starts_with(sink.body));
  EXPECT_EQ(sink.head->status, 200);
  EXPECT_EQ(sink.head->content_length, content_.size());
  EXPECT_EQ(sink.head->content_type, "application/octet-stream");
  EXPECT_TRUE(sink.head->accepts_ranges);
}

TEST_F(HttpServer, RangesByOurClient) {
  StartDefault();
  const uint64_t size = content_.size();
  const std::pair<uint64_t, uint64_t> ranges[] = {
      {0, 1}, {100, 5000}, {size - 1, size}, {1 << 20, (1 << 20) + 70000}};
  for (const auto& [begin, end] : ranges) {
    GetRequest request = DirectRequest(Url("/file"));
    request.range_begin = begin;
    request.range_end = end;
    request.if_range = "\"tag\"";
    RecordingSink sink;
    const Outcome outcome = Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
    EXPECT_EQ(sink.head->status, 206);
    EXPECT_EQ(sink.head->content_range, (ContentRange{begin, end - 1, size}));
    EXPECT_TRUE(sink.body == content_.substr(begin, end - begin));
  }
  GetRequest beyond = DirectRequest(Url("/file"));
  beyond.range_begin = size;
  RecordingSink sink;
  const Outcome outcome = Get(beyond, sink, {});
  EXPECT_EQ(outcome.failure, Failure::kPermanent);
  EXPECT_EQ(outcome.status.code(), base::Code::kOutOfRange);
}

TEST_F(HttpServer, RangeForms) {
  StartDefault();
  const std::string size = std::to_string(content_.size());
  const std::string tail = Fetch("GET", "/file", "Range: bytes=-5\r\n");
  EXPECT_THAT(tail, StartsWith("HTTP/1.1 206 Partial Content\r\n"));
  EXPECT_THAT(tail,
              EndsWith("\r\n\r\n" + content_.substr(content_.size() - 5)));
  const std::string beyond =
      Fetch("GET", "/file", "Range: bytes=" + size + "-\r\n");
  EXPECT_THAT(beyond, StartsWith("HTTP/1.1 416 "));
  EXPECT_THAT(beyond, HasSubstr("Content-Range: bytes */" + size + "\r\n"));
  EXPECT_THAT(beyond, HasSubstr("Content-Length: 0\r\n"));
  for (const char* ignored :
       {"Range: bytes=0-1,3-4\r\n", "Range: bytes=5-3\r\n", "Range: x=0-1\r\n",
        "Range: bytes=0-1\r\nRange: bytes=2-3\r\n",
        "Range: bytes=0-1\r\nIf-Range: \"other\"\r\n",
        "Range: bytes=0-1\r\nIf-Range: W/\"tag\"\r\n",
        "Range: bytes=0-1\r\nIf-Range: Sun, 06 Nov 1994 08:49:38 GMT\r\n"}) {
    EXPECT_THAT(Fetch("GET", "/file", ignored).substr(0, 17),
                "HTTP/1.1 200 OK\r\n")
        << ignored;
  }
  EXPECT_THAT(Fetch("GET", "/file",
                    "Range: bytes=0-1\r\n"
                    "If-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
              StartsWith("HTTP/1.1 206 "));
  EXPECT_THAT(Fetch("GET", "/other", "Range: bytes=0-1\r\n"),
              StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServer, EmptyFile) {
  StartDefault();
  EXPECT_THAT(Fetch("GET", "/empty"), HasSubstr("Content-Length: 0\r\n"));
  EXPECT_THAT(Fetch("GET", "/empty", "Range: bytes=0-\r\n"),
              HasSubstr("Content-Range: bytes */0\r\n"));
}

TEST_F(HttpServer, HeadSendsNoBody) {
  StartDefault();
  const std::string answer = Fetch("HEAD", "/file", "Range: bytes=0-1\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(
      answer,
      HasSubstr("Content-Length: " + std::to_string(content_.size()) + "\r\n"));
  EXPECT_THAT(answer, HasSubstr("Accept-Ranges: bytes\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\n"));
  EXPECT_THAT(Fetch("HEAD", "/text"), EndsWith("\r\n\r\n"));
}

TEST_F(HttpServer, DecodesThePath) {
  StartDefault();
  EXPECT_THAT(Fetch("GET", "/a%20b%2Fc?x=%20"),
              EndsWith("\r\n\r\nGET /a b/c ? x=%20"));
  EXPECT_THAT(Fetch("GET", "http://elsewhere/a?b"),
              EndsWith("\r\n\r\nGET /a ? b"));
}

TEST_F(HttpServer, RefusesBadRequests) {
  StartDefault();
  EXPECT_THAT(Fetch("GET", "/%zz"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Fetch("GET", "/%00"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Fetch("GET", "*"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Exchange("nonsense\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Exchange("GET / HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(
      Exchange("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n"),
      StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Fetch("GET", "/", "Content-Length: 99999999999\r\n"),
              StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(Fetch("GET", "/", "Transfer-Encoding: chunked\r\n"),
              StartsWith("HTTP/1.1 413 "));
  const std::string trace = Fetch("TRACE", "/", "Content-Length: 0\r\n");
  EXPECT_THAT(trace, StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(trace,
              HasSubstr("Allow: GET, HEAD, PUT, PATCH, POST, DELETE\r\n"));
  EXPECT_THAT(Fetch("BREW", "/"), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Fetch("GET", "/", "X: " + std::string(17 * 1024, 'a') + "\r\n"),
              StartsWith("HTTP/1.1 431 "));
}

TEST_F(HttpServer, RefusalReachesAClientThatStillSends) {
  StartDefault();
  const std::string answer =
      Exchange("BREW / HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n" +
               std::string(500'000, 'x'));
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 405 "));
}

TEST_F(HttpServer, AnswersOfOddHandlers) {
  StartDefault();
  EXPECT_THAT(Fetch("GET", "/throw"), StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(Fetch("GET", "/bad-status"), StartsWith("HTTP/1.1 500 "));
  const std::string none = Fetch("GET", "/no-content");
  EXPECT_THAT(none, StartsWith("HTTP/1.1 204 "));
  EXPECT_THAT(none, EndsWith("\r\n\r\n"));
  EXPECT_THAT(none, Not(HasSubstr("Content-Length")));
  const std::string headers = Fetch("GET", "/headers");
  EXPECT_THAT(headers, HasSubstr("X-Mine: a  Injected: b\r\n"));
  EXPECT_THAT(headers, Not(HasSubstr("999")));
  EXPECT_THAT(headers, Not(HasSubstr("upgrade")));
}

TEST_F(HttpServer, FileShorterThanSaidBreaksTheConnection) {
  StartDefault();
  RecordingSink sink;
  const Outcome outcome = Get(DirectRequest(Url("/short")), sink, {});
  EXPECT_EQ(outcome.failure, Failure::kTransient);
  EXPECT_THAT(outcome.status.message(), HasSubstr("5 of 100 bytes"));
}

TEST_F(HttpServer, KeepsConnectionsAlive) {
  StartDefault();
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  for (int i = 0; i < 3; ++i) {
    conn.Send("GET /file HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
    EXPECT_TRUE(conn.ReadBytes(content_.size()) == content_);
  }
  // Two at once, the first without a body.
  conn.Send(
      "HEAD /file HTTP/1.1\r\nHost: h\r\n\r\n"
      "GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_EQ(conn.ReadBytes(9), "GET /x ? ");
  // A refusal that needs no close, then HTTP/1.0.
  conn.Send("BREW / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 405 "));
  const std::string text =
      "expected one of the methods GET, HEAD, PUT, PATCH, POST, DELETE\n";
  EXPECT_EQ(conn.ReadBytes(text.size()), text);
  conn.Send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), HasSubstr("Connection: keep-alive\r\n"));
  EXPECT_EQ(conn.ReadBytes(9), "GET /x ? ");
  conn.Send("GET /y HTTP/1.0\r\n\r\n");
  EXPECT_THAT(conn.ReadAll(), EndsWith("GET /y ? "));
}

TEST_F(HttpServer, SlowHeadTimesOut) {
  StartDefault({.head_timeout = milliseconds(200)});
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send("GET /x HTTP/1.1\r\nX: ");
  EXPECT_EQ(conn.ReadAll(), "");  // closed, within Conn's deadline
  // Each byte is no progress: the whole head has the deadline.
  const base::UniqueFd slow = ConnectLocal(port_);
  Conn loris(slow.get());
  pollfd closed{slow.get(), POLLIN, 0};
  int sent = 0;
  while (sent < 1000 && ::poll(&closed, 1, 20) == 0 && loris.Send("G")) ++sent;
  EXPECT_LT(sent, 1000);
}

TEST_F(HttpServer, ClientThatReadsNothingTimesOut) {
  StartDefault({.send_timeout = milliseconds(300)});
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send("GET /huge HTTP/1.1\r\nHost: h\r\n\r\n");
  // A reset, or it would wait behind what lies unread in the buffers.
  pollfd closed{fd.get(), POLLRDHUP, 0};
  EXPECT_EQ(::poll(&closed, 1, 10'000), 1);
}

TEST_F(HttpServer, VanishingClientsAreForgotten) {
  StartDefault({.max_connections = 1});
  for (int i = 0; i < 5; ++i) {
    const base::UniqueFd fd = ConnectLocal(port_);
    Conn conn(fd.get());
    conn.Send("GET /huge HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
    EXPECT_EQ(conn.ReadBytes(3 << 20).size(), 3u << 20);
    if (i % 2 == 0) conn.ResetAtClose();
  }
  // The only place is free again.
  EXPECT_THAT(Fetch("GET", "/x"), EndsWith("GET /x ? "));
}

TEST_F(HttpServer, FurtherConnectionsWait) {
  StartDefault({.max_connections = 2});
  base::UniqueFd first = ConnectLocal(port_);
  base::UniqueFd second = ConnectLocal(port_);
  for (const base::UniqueFd* fd : {&first, &second}) {
    Conn conn(fd->get());
    conn.Send("GET /huge HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  }
  const base::UniqueFd third = ConnectLocal(port_);
  Conn conn(third.get());
  conn.Send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
  pollfd answered{third.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&answered, 1, 100), 0);
  first.Reset();
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_EQ(Conn(second.get()).ReadBytes(3 << 20).size(), 3u << 20);
}

TEST_F(HttpServer, SilentClientsLockNobodyOut) {
  StartDefault();
  std::vector<base::UniqueFd> silent;
  for (int i = 0; i < 1000; ++i) {
    silent.push_back(ConnectLocal(port_));
    if (i % 3 == 0) Conn(silent.back().get()).Send("GET / HTTP/1.1\r\nHost");
  }
  for (int i = 0; i < 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_THAT(Fetch("GET", "/x"), EndsWith("GET /x ? "));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(2000));
  }
  // The longest waiting were closed for it, and no more than needed.
  Conn(silent.front().get()).AwaitClose();
  size_t open = 0;
  for (const base::UniqueFd& fd : silent) {
    pollfd closed{fd.get(), POLLIN, 0};
    open += ::poll(&closed, 1, 0) == 0 ? 1 : 0;
  }
  EXPECT_GE(open, 250u);
  EXPECT_LE(open, 256u);
  Conn last(silent.back().get());
  last.Send(": h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(last.ReadAll(), EndsWith("GET / ? "));
}

TEST_F(HttpServer, WhoWaitedLongestMakesRoom) {
  StartDefault({.max_connections = 3});
  const auto ask = [](const base::UniqueFd& fd, const std::string& path) {
    Conn conn(fd.get());
    conn.Send("GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  };
  const base::UniqueFd kept = ConnectLocal(port_);
  const base::UniqueFd silent = ConnectLocal(port_);
  const base::UniqueFd sending = ConnectLocal(port_);
  ask(sending, "/huge");
  ask(kept, "/x");  // it waits anew from here on
  const base::UniqueFd fourth = ConnectLocal(port_);
  ask(fourth, "/x");
  EXPECT_EQ(Conn(silent.get()).ReadAll(), "");
  ask(kept, "/x");
  const base::UniqueFd fifth = ConnectLocal(port_);
  ask(fifth, "/x");
  EXPECT_EQ(Conn(fourth.get()).ReadAll(), "");
  ask(kept, "/x");
  ask(fifth, "/x");
  EXPECT_EQ(Conn(sending.get()).ReadBytes(3 << 20).size(), 3u << 20);
}

TEST_F(HttpServer, ManyMoreThanPlaces) {
  StartDefault({.max_connections = 2});
  std::vector<std::jthread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 20; ++j) {
        // Closed only if it was accepted before its request was sent.
        EXPECT_THAT(Fetch("GET", "/x"),
                    testing::AnyOf(EndsWith("GET /x ? "), ""));
      }
    });
  }
  threads.clear();
  EXPECT_THAT(Fetch("GET", "/x"), EndsWith("GET /x ? "));
}

TEST_F(HttpServer, ManyAtOnce) {
  StartDefault();
  std::vector<std::jthread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([this] {
      for (int j = 0; j < 5; ++j) {
        RecordingSink sink;
        EXPECT_EQ(Get(DirectRequest(Url("/file")), sink, {}).failure,
                  Failure::kNone);
        EXPECT_EQ(sink.bytes, content_.size());
      }
    });
  }
}

TEST_F(HttpServer, DestroyedWhileSending) {
  StartDefault();
  std::vector<base::UniqueFd> fds;
  for (int i = 0; i < 4; ++i) {
    fds.push_back(ConnectLocal(port_));
    Conn conn(fds.back().get());
    conn.Send("GET /huge HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  }
  // One is being read, the others block; one never asked; one is in its head.
  std::jthread reader([fd = fds[0].get()] { Conn(fd).AwaitClose(); });
  fds.push_back(ConnectLocal(port_));
  fds.push_back(ConnectLocal(port_));
  Conn(fds.back().get()).Send("GET /");
  server_.reset();
  for (size_t i = 1; i < fds.size(); ++i) Conn(fds[i].get()).AwaitClose();
}

TEST_F(HttpServer, DestructorAwaitsRunningHandlersOnly) {
  // 4 threads run a handler, further requests are queued and never run.
  std::latch running(4);
  std::atomic<bool> release{false};
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
  Start([&](const Request&) {
    ++begun;
    running.count_down();
    release.wait(false);
    ++ended;
    return Response();
  });
  std::vector<base::UniqueFd> fds;
  for (int i = 0; i < 4; ++i) {
    fds.push_back(ConnectLocal(port_));
    Conn(fds.back().get()).Send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
  }
  running.wait();
  for (int i = 0; i < 3; ++i) {
    fds.push_back(ConnectLocal(port_));
    Conn(fds.back().get()).Send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
  }
  std::jthread releaser([&] {
    // The connections are closed before the handlers are awaited.
    Conn(fds[0].get()).AwaitClose();
    release = true;
    release.notify_all();
  });
  server_.reset();
  EXPECT_EQ(begun, 4);
  EXPECT_EQ(ended, 4);
}

TEST_F(HttpServer, DestroyedAfterThePoolWasShutDown) {
  StartDefault();
  pool_.Shutdown();
  EXPECT_EQ(Fetch("GET", "/x"), "");
  server_.reset();
}

TEST_F(HttpServer, StartsAndEndsUnused) {
  for (int i = 0; i < 20; ++i) {
    StartDefault();
    server_.reset();
  }
}

TEST_F(HttpServer, ServesUnixSockets) {
  char folder[] = "/tmp/bim-http-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = std::string(folder) + "/sock";
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  base::UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto* name = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(listener.get(), name, sizeof(address)), 0);
  ASSERT_EQ(::listen(listener.get(), 8), 0);
  auto server = Server::Start(
      loop_, pool_, std::move(listener),
      [this](const Request& request) { return Answer(request); }, {});
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  const base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(fd.get(), name, sizeof(address)), 0);
  Conn conn(fd.get());
  conn.Send("GET /file HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_TRUE(conn.ReadBytes(content_.size()) == content_);
  ::unlink(path.c_str());
  ::rmdir(folder);
}

TEST_F(HttpServer, RefusesWhatIsNoListener) {
  const Handler handler = [](const Request&) { return Response(); };
  base::UniqueFd plain(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(Server::Start(loop_, pool_, std::move(plain), handler, {})
                .status()
                .code(),
            base::Code::kInvalidArgument);
  EXPECT_EQ(
      Server::Start(loop_, pool_, FileOf(""), handler, {}).status().code(),
      base::Code::kInvalidArgument);
  EXPECT_EQ(Server::Start(loop_, pool_, base::UniqueFd(), handler, {})
                .status()
                .code(),
            base::Code::kInvalidArgument);
  EXPECT_EQ(Server::Start(loop_, pool_, ListenLocal().first, handler,
                          {.max_connections = 0})
                .status()
                .code(),
            base::Code::kInvalidArgument);
}

}  // namespace
}  // namespace bim::http
