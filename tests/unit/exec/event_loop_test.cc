#include "pkg/exec/event_loop.h"

#include <gtest/gtest.h>

#include <boost/asio/steady_timer.hpp>
#include <future>
#include <memory>
#include <vector>

namespace bim::exec {
namespace {

TEST(EventLoopTest, RunsInOrderOnItsOwnThread) {
  EventLoop loop;
  EXPECT_FALSE(loop.InLoop());
  std::vector<int> order;
  std::promise<void> done;
  for (int i = 0; i < 1000; ++i) {
    loop.Post([&, i] {
      EXPECT_TRUE(loop.InLoop());
      order.push_back(i);
      if (i == 999) done.set_value();
    });
  }
  done.get_future().wait();
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

TEST(EventLoopTest, PostFromWithinAndTimers) {
  EventLoop loop;
  boost::asio::steady_timer timer(loop.context());
  std::promise<bool> done;
  loop.Post([&] {
    timer.expires_after(std::chrono::milliseconds(1));
    timer.async_wait([&](const boost::system::error_code& error) {
      loop.Post([&, ok = !error && loop.InLoop()] { done.set_value(ok); });
    });
  });
  EXPECT_TRUE(done.get_future().get());
}

TEST(EventLoopTest, DestroysUnrunWhatItHasNotRun) {
  auto held = std::make_shared<int>(1);
  std::promise<void> entered, leave;
  bool ran = false;
  auto loop = std::make_unique<EventLoop>();
  loop->Post([&] {
    entered.set_value();
    leave.get_future().wait();
  });
  entered.get_future().wait();
  loop->context().stop();
  loop->Post([&ran, held] { ran = true; });
  leave.set_value();
  loop.reset();
  EXPECT_FALSE(ran);
  EXPECT_EQ(held.use_count(), 1);
}

}  // namespace
}  // namespace bim::exec
