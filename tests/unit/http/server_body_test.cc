// Bodies of requests: PUT, PATCH and POST; and DELETE, which has none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "tests/unit/http/server_fixture.h"

namespace bim::http {
namespace {

using std::chrono::milliseconds;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

constexpr std::chrono::seconds kDeadline{10};

// What a taker saw, and what it is to do.
struct Seen {
  std::mutex mutex;
  std::condition_variable changed;
  std::string body;
  size_t pieces = 0;
  size_t largest = 0;
  std::vector<base::Status> finished;
  size_t destroyed = 0;
  std::atomic<bool> overlapped = false;

  std::function<base::Status(std::span<const std::byte>)> on_data;
  std::function<void()> on_finish;

  std::vector<base::Status> Finished() {
    std::lock_guard lock(mutex);
    return finished;
  }
  template <typename Condition>
  bool Await(Condition condition) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, kDeadline, condition);
  }
};

class SeenTaker : public BodyTaker {
 public:
  explicit SeenTaker(Seen& seen) : seen_(seen) {}
  ~SeenTaker() override {
    const Call call(*this);
    std::lock_guard lock(seen_.mutex);
    ++seen_.destroyed;
    seen_.changed.notify_all();
  }
  base::Status OnData(std::span<const std::byte> data) override {
    const Call call(*this);
    EXPECT_FALSE(finished_);
    {
      std::lock_guard lock(seen_.mutex);
      ++seen_.pieces;
      seen_.largest = std::max(seen_.largest, data.size());
      seen_.body.append(reinterpret_cast<const char*>(data.data()),
                        data.size());
      seen_.changed.notify_all();
    }
    return seen_.on_data ? seen_.on_data(data) : base::OkStatus();
  }
  Response Finish(const base::Status& status) override {
    const Call call(*this);
    EXPECT_FALSE(std::exchange(finished_, true));
    if (seen_.on_finish) seen_.on_finish();
    Response response;
    std::lock_guard lock(seen_.mutex);
    seen_.finished.push_back(status);
    seen_.changed.notify_all();
    response.status = status.ok() ? 201 : 507;
    response.body = "got " + std::to_string(seen_.body.size());
    return response;
  }

 private:
  struct Call {
    explicit Call(SeenTaker& taker) : taker(taker) {
      if (taker.inside_++ != 0) taker.seen_.overlapped = true;
    }
    ~Call() { --taker.inside_; }
    SeenTaker& taker;
  };
  Seen& seen_;
  std::atomic<int> inside_{0};
  bool finished_ = false;
};

class HttpServerBody : public ServerTest {
 protected:
  void TearDown() override {
    server_.reset();
    EXPECT_FALSE(seen_.overlapped);
    std::lock_guard lock(seen_.mutex);
    EXPECT_EQ(seen_.destroyed, taken_);
    EXPECT_LE(seen_.finished.size(), taken_);
  }
  void StartTaking(Server::Options options = {}) {
    Start(
        [this](const Request& request) {
          {
            std::lock_guard lock(mutex_);
            requests_.push_back(request);
          }
          Response response;
          if (request.path == "/refuse") {
            response.status = 409;
            response.body = "no";
          } else if (request.path == "/taken") {
            response.taker = std::make_unique<SeenTaker>(seen_);
            response.status = 500;  // not used
            std::lock_guard lock(seen_.mutex);
            ++taken_;
            seen_.changed.notify_all();
          } else {
            response.body = "plain";
          }
          return response;
        },
        options);
  }
  Request LastRequest() {
    std::lock_guard lock(mutex_);
    return requests_.at(requests_.size() - 1);
  }
  static std::string Put(const std::string& path, const std::string& lines) {
    return "PUT " + path + " HTTP/1.1\r\nHost: h\r\n" + lines + "\r\n";
  }
  static std::string Length(size_t size) {
    return "Content-Length: " + std::to_string(size) + "\r\n";
  }

  Seen seen_;
  std::atomic<size_t> taken_{0};
  std::mutex mutex_;
  std::vector<Request> requests_;
};

TEST_F(HttpServerBody, FieldsOfTheRequest) {
  StartTaking();
  Fetch("PATCH", "/x?q",
        "X-One: 1\r\nx-two: a\r\nX-TWO: b\r\nContent-Length: 0\r\n");
  const Request patch = LastRequest();
  EXPECT_EQ(patch.method, "PATCH");
  EXPECT_EQ(patch.path, "/x");
  EXPECT_EQ(patch.query, "q");
  EXPECT_EQ(patch.content_length, 0u);
  EXPECT_EQ(patch.Field("x-one"), "1");
  EXPECT_EQ(patch.Field("x-two"), "");  // came twice
  EXPECT_EQ(patch.Field("x-three"), "");
  const std::vector<std::pair<std::string, std::string>> fields = {
      {"host", "h"},  {"x-one", "1"},          {"x-two", "a"},
      {"x-two", "b"}, {"content-length", "0"}, {"connection", "close"}};
  EXPECT_EQ(patch.fields, fields);
  Fetch("PUT", "/x");
  EXPECT_EQ(LastRequest().content_length, 0u);
  Exchange(Put("/x", "Transfer-Encoding: chunked\r\nConnection: close\r\n") +
           "0\r\n\r\n");
  EXPECT_EQ(LastRequest().content_length, std::nullopt);
  Exchange(Put("/x", Length(3)) + "abc");
  EXPECT_EQ(LastRequest().content_length, 3u);
}

TEST_F(HttpServerBody, BodyOfKnownLength) {
  StartTaking();
  const std::string body = Pattern((3 << 20) + 77);
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  // Twice on one connection, the second in the same packet as the first's end.
  conn.Send(Put("/taken", Length(body.size())) + body +
            Put("/taken", Length(5)) + "after");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  const std::string text = "got " + std::to_string(body.size());
  EXPECT_EQ(conn.ReadBytes(text.size()), text);
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_TRUE(seen_.body == body + "after");
  EXPECT_LE(seen_.largest, 256u * 1024);
  EXPECT_EQ(seen_.Finished(), std::vector<base::Status>(2));
}

TEST_F(HttpServerBody, ChunkedBody) {
  StartTaking();
  const std::string big = Pattern(600'000);
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send(Put("/taken", "Transfer-Encoding: chunked\r\n") +
            "5;x=y\r\nhello\r\n927C0\r\n" + big +
            "\r\n1\r\n!\r\n0\r\nTrailer: t\r\n\r\nGET /x HTTP/1.1\r\nHost: "
            "h\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(conn.ReadBytes(10), "got 600006");
  EXPECT_TRUE(seen_.body == "hello" + big + "!");
  EXPECT_LE(seen_.largest, 256u * 1024);
  // What came behind it is the next request.
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_EQ(conn.ReadBytes(5), "plain");
}

TEST_F(HttpServerBody, ByteByByte) {
  StartTaking();
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send(Put("/taken", "Transfer-Encoding: chunked\r\n"));
  for (const char c : std::string("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    conn.Send(std::string(1, c));
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(seen_.body, "abcde");
}

TEST_F(HttpServerBody, NoBodyAtAll) {
  StartTaking();
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  for (const std::string& lines :
       {std::string(), Length(0), Length(0) + "Expect: 100-continue\r\n"}) {
    conn.Send(Put("/taken", lines));
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
    EXPECT_EQ(conn.ReadBytes(5), "got 0");
  }
  conn.Send(Put("/taken", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(seen_.pieces, 0u);
  EXPECT_EQ(seen_.Finished(), std::vector<base::Status>(4));
}

TEST_F(HttpServerBody, ExpectationIsAnswered) {
  StartTaking();
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send(Put("/taken", Length(5) + "Expect: 100-Continue\r\n"));
  EXPECT_EQ(conn.ReadHead(), "HTTP/1.1 100 Continue\r\n\r\n");
  conn.Send("hello");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(conn.ReadBytes(5), "got 5");
  // Not when the body is refused, nor when it came unasked.
  conn.Send(Put("/taken", Length(5) + "Expect: 100-continue\r\n") + "hello");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(conn.ReadBytes(6), "got 10");
  conn.Send(Put("/refuse", Length(5) + "Expect: 100-continue\r\n"));
  const std::string refusal = conn.ReadHead();
  EXPECT_THAT(refusal, StartsWith("HTTP/1.1 409 "));
  EXPECT_THAT(refusal, HasSubstr("Connection: close\r\n"));
  EXPECT_EQ(conn.ReadAll(), "no");
}

TEST_F(HttpServerBody, RefusedBodyIsDrained) {
  StartTaking();
  const std::string answer =
      Exchange(Put("/refuse", Length(500'000)) + std::string(500'000, 'x'));
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 409 "));
  // Without a body the connection is kept.
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send(Put("/refuse", "") + Put("/x", ""));
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 409 "));
  EXPECT_EQ(conn.ReadBytes(2), "no");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerBody, UnclearBodiesAreRefused) {
  StartTaking();
  EXPECT_THAT(Exchange(Put("/taken", "Transfer-Encoding: gzip, chunked\r\n")),
              StartsWith("HTTP/1.1 501 "));
  EXPECT_THAT(Exchange(Put("/taken", "Transfer-Encoding: gzip\r\n")),
              StartsWith("HTTP/1.1 501 "));
  EXPECT_THAT(Exchange(Put(
                  "/taken",
                  "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n")),
              StartsWith("HTTP/1.1 501 "));
  EXPECT_THAT(Exchange("PUT /taken HTTP/1.0\r\n"
                       "Transfer-Encoding: chunked\r\n\r\n"),
              StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(
      Exchange(Put("/taken", Length(5) + "Transfer-Encoding: chunked\r\n")),
      StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Exchange(Put("/taken", Length(5) + Length(6))),
              StartsWith("HTTP/1.1 400 "));
  EXPECT_EQ(taken_, 0u);
}

TEST_F(HttpServerBody, FailureInTheMiddle) {
  StartTaking();
  seen_.on_data = [&](std::span<const std::byte>) {
    return seen_.pieces < 3 ? base::OkStatus()
                            : base::ResourceExhaustedError("full");
  };
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  // Much more than is drained: the client is stuck in its sending and sees the
  // answer all the same.
  const std::string block(1 << 20, 'x');
  std::jthread sender([&] {
    Conn(fd.get()).Send(Put("/taken", Length(1 << 30)));
    for (int i = 0; i < 1024 && Conn(fd.get()).Send(block);) ++i;
  });
  const std::string head = conn.ReadHead();
  EXPECT_THAT(head, StartsWith("HTTP/1.1 507 "));
  EXPECT_THAT(head, HasSubstr("Connection: close\r\n"));
  conn.ReadAll();
  ::shutdown(fd.get(), SHUT_RDWR);
  EXPECT_EQ(seen_.Finished(),
            std::vector{base::ResourceExhaustedError("full")});
  EXPECT_EQ(seen_.pieces, 3u);
}

TEST_F(HttpServerBody, TakerThatThrows) {
  StartTaking();
  seen_.on_data = [&](std::span<const std::byte>) -> base::Status { throw 1; };
  EXPECT_THAT(Exchange(Put("/taken", Length(1)) + "x"),
              StartsWith("HTTP/1.1 507 "));
  ASSERT_EQ(seen_.Finished().size(), 1u);
  EXPECT_EQ(seen_.Finished()[0].code(), base::Code::kInternal);
  seen_.on_data = nullptr;
  seen_.on_finish = [] { throw 1; };
  EXPECT_THAT(
      Exchange(Put("/taken", Length(1) + "Connection: close\r\n") + "x"),
      StartsWith("HTTP/1.1 500 "));
}

TEST_F(HttpServerBody, BrokenConnections) {
  StartTaking();
  size_t broken = 0;
  for (const std::string& begin :
       {Put("/taken", Length(10)) + "hello",
        Put("/taken", "Transfer-Encoding: chunked\r\n") + "5\r\nhel",
        Put("/taken", "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n"}) {
    for (const bool reset : {false, true}) {
      const base::UniqueFd fd = ConnectLocal(port_);
      Conn conn(fd.get());
      conn.Send(begin);
      ++broken;
      if (reset) {
        ASSERT_TRUE(seen_.Await([&] { return seen_.pieces == broken; }));
        conn.ResetAtClose();
        continue;
      }
      ::shutdown(fd.get(), SHUT_WR);
      EXPECT_EQ(conn.ReadAll(), "");  // no answer
    }
    ASSERT_TRUE(seen_.Await([&] { return seen_.destroyed == broken; }));
  }
  for (const base::Status& status : seen_.Finished())
    EXPECT_EQ(status.code(), base::Code::kUnavailable);
  EXPECT_EQ(seen_.Finished().size(), broken);
}

TEST_F(HttpServerBody, NoChunksAreABrokenConnection) {
  StartTaking();
  for (const std::string& chunks :
       {std::string("zz\r\nhello\r\n0\r\n\r\n"),
        std::string("3\r\nhello\r\n0\r\n\r\n"),
        std::string("fffffffffffffffff\r\n"), std::string(20'000, '1'),
        "1;" + std::string(20'000, 'x')}) {
    EXPECT_EQ(
        Exchange(Put("/taken", "Transfer-Encoding: chunked\r\n") + chunks), "");
  }
  ASSERT_EQ(seen_.Finished().size(), 5u);
  for (const base::Status& status : seen_.Finished())
    EXPECT_EQ(status.code(), base::Code::kUnavailable);
}

TEST_F(HttpServerBody, SilenceEndsIt) {
  StartTaking({.send_timeout = milliseconds(200)});
  for (const std::string& begin :
       {Put("/taken", Length(10)) + "hello",
        Put("/taken", Length(10) + "Expect: 100-continue\r\n")}) {
    const base::UniqueFd fd = ConnectLocal(port_);
    Conn conn(fd.get());
    conn.Send(begin);
    EXPECT_THAT(conn.ReadAll(), testing::Not(HasSubstr("HTTP/1.1 5")));
  }
  ASSERT_EQ(seen_.Finished().size(), 2u);
  for (const base::Status& status : seen_.Finished())
    EXPECT_EQ(status.code(), base::Code::kUnavailable);
}

TEST_F(HttpServerBody, TimeInTheTakerIsNoSilence) {
  StartTaking({.send_timeout = milliseconds(150)});
  seen_.on_data = [](std::span<const std::byte>) {
    std::this_thread::sleep_for(milliseconds(300));
    return base::OkStatus();
  };
  EXPECT_THAT(
      Exchange(Put("/taken", Length(5) + "Connection: close\r\n") + "hello"),
      StartsWith("HTTP/1.1 201 "));
}

TEST_F(HttpServerBody, TheNextPieceIsReadOnlyAfterwards) {
  StartTaking();
  std::atomic<bool> release{false};
  seen_.on_data = [&](std::span<const std::byte>) {
    release.wait(false);
    return base::OkStatus();
  };
  const base::UniqueFd fd = ConnectLocal(port_, 0);
  constexpr size_t kSize = 64 << 20;
  Conn conn(fd.get());
  conn.Send(Put("/taken", Length(kSize)));
  // Until the socket takes no more: what fits into the kernel's buffers.
  size_t sent = 0;
  const std::string block(256 * 1024, 'x');
  pollfd writable{fd.get(), POLLOUT, 0};
  while (::poll(&writable, 1, 300) == 1) {
    const ssize_t count =
        ::send(fd.get(), block.data(), block.size(), MSG_DONTWAIT);
    if (count > 0) sent += static_cast<size_t>(count);
  }
  EXPECT_LT(sent, kSize / 2);
  {
    std::lock_guard lock(seen_.mutex);
    EXPECT_EQ(seen_.pieces, 1u);
  }
  release = true;
  release.notify_all();
  std::string rest(kSize - sent, 'x');
  conn.Send(rest);
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(seen_.body.size(), kSize);
}

TEST_F(HttpServerBody, StopInTheMiddle) {
  StartTaking();
  std::atomic<bool> release{false};
  seen_.on_data = [&](std::span<const std::byte>) {
    release.wait(false);
    return base::OkStatus();
  };
  // One is in OnData, one silent, one has sent nothing.
  std::vector<base::UniqueFd> fds;
  for (const std::string& begin :
       {Put("/taken", Length(10)) + "hello", Put("/taken", Length(10)),
        Put("/taken", "Transfer-Encoding: chunked\r\n") + "1"}) {
    fds.push_back(ConnectLocal(port_));
    Conn(fds.back().get()).Send(begin);
  }
  ASSERT_TRUE(seen_.Await([&] { return seen_.pieces == 1 && taken_ == 3; }));
  std::jthread releaser([&] {
    Conn(fds[0].get()).AwaitClose();
    release = true;
    release.notify_all();
  });
  server_.reset();
  EXPECT_EQ(seen_.destroyed, 3u);
  EXPECT_TRUE(seen_.Finished().empty());
}

TEST_F(HttpServerBody, StopInTheMiddleOfManyUploads) {
  StartTaking();
  std::vector<base::UniqueFd> fds;
  for (int i = 0; i < 6; ++i) fds.push_back(ConnectLocal(port_));
  std::vector<std::jthread> senders;
  for (const base::UniqueFd& fd : fds) {
    senders.emplace_back([fd = fd.get()] {
      const std::string upload =
          Put("/taken", Length(300'000)) + std::string(300'000, 'x');
      Conn conn(fd);
      while (conn.Send(upload)) {
        if (conn.ReadHead().empty()) break;
        conn.ReadBytes(10);
      }
    });
  }
  EXPECT_TRUE(seen_.Await([&] { return seen_.finished.size() > 20; }));
  server_.reset();
  for (const base::Status& status : seen_.Finished())
    EXPECT_EQ(status, base::OkStatus());
}

TEST_F(HttpServerBody, NotClosedForAnotherConnection) {
  StartTaking({.max_connections = 1});
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send(Put("/taken", Length(10)) + "hello");
  ASSERT_TRUE(seen_.Await([&] { return seen_.pieces == 1; }));
  const base::UniqueFd other = ConnectLocal(port_);
  Conn(other.get()).Send(Put("/x", ""));
  pollfd answered{other.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&answered, 1, 100), 0);
  conn.Send("hello");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  // Kept for its next request, it makes room.
  EXPECT_THAT(Conn(other.get()).ReadHead(), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerBody, OtherMethodsAreRefused) {
  StartTaking();
  for (const char* method : {"OPTIONS", "TRACE", "BREW"}) {
    const std::string answer = Fetch(method, "/taken");
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 405 "));
    EXPECT_THAT(answer,
                HasSubstr("Allow: GET, HEAD, PUT, PATCH, POST, DELETE\r\n"));
  }
  EXPECT_TRUE(requests_.empty());
}

TEST_F(HttpServerBody, Post) {
  StartTaking();
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  const auto post = [](const std::string& path, const std::string& lines) {
    return "POST " + path + " HTTP/1.1\r\nHost: h\r\n" + lines + "\r\n";
  };
  const std::string body = Pattern(600'000);
  conn.Send(post("/taken?begin=0", Length(body.size())) + body);
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(conn.ReadBytes(10), "got 600000");
  EXPECT_TRUE(seen_.body == body);
  EXPECT_EQ(LastRequest().method, "POST");
  EXPECT_EQ(LastRequest().query, "begin=0");
  EXPECT_EQ(LastRequest().content_length, body.size());
  conn.Send(post("/taken", "Transfer-Encoding: chunked\r\n") +
            "2\r\nab\r\n0\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 201 "));
  EXPECT_EQ(conn.ReadBytes(10), "got 600002");
  EXPECT_EQ(LastRequest().content_length, std::nullopt);
  // Without a body the handler answers, and the connection is kept.
  for (const std::string& lines : {std::string(), Length(0)}) {
    conn.Send(post("/x", lines));
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
    EXPECT_EQ(conn.ReadBytes(5), "plain");
    EXPECT_EQ(LastRequest().content_length, 0u);
  }
  // Without a taker a body is refused.
  conn.Send(post("/refuse", Length(body.size())) + body);
  const std::string refusal = conn.ReadHead();
  EXPECT_THAT(refusal, StartsWith("HTTP/1.1 409 "));
  EXPECT_THAT(refusal, HasSubstr("Connection: close\r\n"));
  EXPECT_EQ(conn.ReadAll(), "no");
}

TEST_F(HttpServerBody, Delete) {
  StartTaking();
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  for (const std::string& lines : {std::string(), Length(0)}) {
    conn.Send("DELETE /x HTTP/1.1\r\nHost: h\r\n" + lines + "\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
    EXPECT_EQ(conn.ReadBytes(5), "plain");
    EXPECT_EQ(LastRequest().method, "DELETE");
  }
  // With a body nothing is deleted.
  const size_t before = requests_.size();
  for (const std::string& body :
       {Length(5) + "\r\nhello",
        std::string("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")}) {
    EXPECT_THAT(Exchange("DELETE /x HTTP/1.1\r\nHost: h\r\n" + body),
                StartsWith("HTTP/1.1 413 "));
  }
  EXPECT_EQ(requests_.size(), before);
}

TEST_F(HttpServerBody, TakerForAGetIsNotUsed) {
  StartTaking();
  EXPECT_THAT(Fetch("GET", "/taken"), StartsWith("HTTP/1.1 500 "));
  EXPECT_TRUE(seen_.Await([&] { return seen_.destroyed == 1; }));
  EXPECT_TRUE(seen_.Finished().empty());
}

}  // namespace
}  // namespace bim::http
