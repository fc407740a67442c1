import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Page } from '@playwright/test';
import {
  JOB,
  askForRestore,
  backups,
  expect,
  expectAllAccessible,
  failure,
  hold,
  jobs,
  makeBackup,
  open,
  question,
  section,
  startBackup,
  startRestore,
  test,
  told,
  untilDone,
} from '../dashboard';
import { lockTable, turn, type Owner } from '../sandbox';

// Pages stay calm: while they wait, while jobs come and go, on large screens, and for those whom motion makes ill.
test.use({ customer: 7 });

test('a backup to look at', async ({ page }) => {
  await makeBackup(page, 'to look at');
});

test('a page that is on its way says so in the frame of the one before', async ({ page }) => {
  await open(page);
  const letGo = await hold(page, '**/api/page/backup?*');
  await backups(page, 'Your backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('heading', { name: 'Loading …' })).toBeVisible();
  await expect(page.getByRole('banner')).toContainText('ShopHosting Backups');
  expect(await told(page)).toMatchSnapshot('loading.aria.yml');
  await expectAllAccessible(page);
  letGo();
  await expect(page.getByRole('term').filter({ hasText: 'Holds' })).toBeVisible();
});

test('a lost connection is said without moving the page, and found again', async ({ page, context, complaints }) => {
  await open(page);
  const list = section(page, 'Your backups');
  const before = await list.boundingBox();
  await context.setOffline(true);
  const lost = page.getByText('The connection is lost');
  await expect(lost).toBeVisible();
  expect(await list.boundingBox()).toEqual(before);
  expect(await told(page, page.getByRole('status').filter({ has: lost }))).toMatchSnapshot('offline.aria.yml');
  await expectAllAccessible(page);

  await list.getByRole('link', { name: /^Details/ }).first().click();
  await expect(page.getByRole('heading', { name: 'This page cannot be shown right now' })).toBeVisible();
  expect(await told(page)).toMatchSnapshot('page-problem.aria.yml');
  await expectAllAccessible(page);
  await context.setOffline(false);
  await page.getByRole('link', { name: 'Try again' }).click();
  await expect(page.getByRole('term').filter({ hasText: 'Holds' })).toBeVisible();
  await expect(lost).toBeHidden();
  expect(complaints.splice(0).filter((text) => !text.includes('ERR_INTERNET_DISCONNECTED'))).toEqual([]);
});

test('nothing moves for those who asked for less motion', async ({ page, me }) => {
  await open(page);
  const release = await lockTable(me.database, 'wp_posts');
  await startBackup(page, 'db');
  const bar = section(page, 'Backup of the database').getByRole('progressbar');
  await expect(bar).toHaveAccessibleName(/not known yet/);
  const moving = () => page.evaluate(() => document.getAnimations().length);
  await page.emulateMedia({ reducedMotion: 'no-preference' });
  await expect.poll(moving).toBeGreaterThan(0);
  await page.emulateMedia({ reducedMotion: 'reduce' });
  await expect.poll(moving).toBe(0);
  const animated = await page.evaluate(() =>
    [...document.querySelectorAll('*')].filter((element) =>
      [null, '::before', '::after', '::-webkit-progress-value', '::backdrop'].some((part) => {
        const { animationName, transitionDuration } = getComputedStyle(element, part);
        return animationName !== 'none' || transitionDuration !== '0s';
      }),
    ).length,
  );
  expect(animated).toBe(0);
  await release();
  await untilDone(page, 'Backup of the database');
});

/** The widest lines of text, where one is longer than can be read with ease: forty times the size of its letters, that is some eighty of them. */
async function longLines(page: Page): Promise<string[]> {
  return page.evaluate(() => {
    const MOST = 40;
    const hasText = (element: Element) =>
      [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent?.trim());
    return [...document.querySelectorAll('body *')]
      .filter((element) => hasText(element) && element.checkVisibility())
      .filter((element) => {
        const range = document.createRange();
        range.selectNodeContents(element);
        return range.getBoundingClientRect().width > MOST * parseFloat(getComputedStyle(element).fontSize);
      })
      .map((element) => element.outerHTML.slice(0, 120));
  });
}

for (const width of [1920, 2560]) {
  test.describe(`${width} pixels`, () => {
    test.use({ viewport: { width, height: 1200 } });

    test('a wide screen is used, and no line on it is too long to read', async ({ page, me }) => {
      const expectReadable = async () => {
        expect(await longLines(page)).toEqual([]);
        expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(width);
      };
      await open(page);
      await expectReadable();
      const places = ['Your backups', 'Daily backups', 'Recent activity'].map((name) => section(page, name).boundingBox());
      const [mine, daily, recent] = await Promise.all(places);
      expect([daily?.y, recent?.y]).toEqual([mine?.y, mine?.y]);
      const used = (recent?.x ?? 0) + (recent?.width ?? 0) - (mine?.x ?? 0);
      expect(used).toBeGreaterThan(0.6 * width);

      await askForRestore(page, backups(page, 'Your backups').first());
      await expectReadable();
      await page.keyboard.press('Escape');
      await expect(page.getByRole('dialog')).toBeHidden();

      const release = await lockTable(me.database, 'wp_posts');
      await startBackup(page, 'db');
      await expect(section(page, 'Backup of the database').getByRole('progressbar')).toBeVisible();
      await expectReadable();
      await section(page, 'Backup of the database').getByRole('link', { name: /^Cancel/ }).click();
      await question(page, 'Cancel the backup?').getByRole('button', { name: 'Cancel the backup' }).click();
      const failed = failure(page, 'The backup was cancelled');
      await expect(failed).toBeVisible();
      await expectReadable();
      await release();
      await failed.getByRole('button', { name: 'Dismiss' }).click();
      await expect(failed).toBeHidden();

      await backups(page, 'Your backups').first().getByRole('link', { name: /^Details/ }).click();
      await expect(page.getByRole('term').filter({ hasText: 'Holds' })).toBeVisible();
      await expectReadable();
    });
  });
}

/** Begin to watch for what moves although nobody asked for it; gives the function that says how much it was, as browsers reckon it. */
async function watchForJumps(page: Page): Promise<() => Promise<number>> {
  await page.evaluate(() => {
    const jumps: { startTime: number; value: number }[] = [];
    const observer = new PerformanceObserver((list) => {
      for (const entry of list.getEntries() as (PerformanceEntry & { value: number; hadRecentInput: boolean })[]) {
        if (!entry.hadRecentInput) jumps.push({ startTime: entry.startTime, value: entry.value });
      }
    });
    observer.observe({ type: 'layout-shift' });
    Object.assign(window, { jumps, watchedSince: performance.now() });
  });
  return () =>
    page.evaluate(async () => {
      // What was drawn last is told of after it.
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      const { jumps, watchedSince } = window as unknown as { jumps: { startTime: number; value: number }[]; watchedSince: number };
      return jumps.filter(({ startTime }) => startTime > watchedSince).reduce((sum, { value }) => sum + value, 0);
    });
}

/** Something that is in no backup: it has to go over the line. */
function addPicture(me: Owner): void {
  writeFileSync(join(me.site, 'wp-content/new.bin'), randomBytes(1_500_000));
}

const GOOD = 0.1;

for (const [name, viewport] of Object.entries({ desktop: { width: 1280, height: 900 }, phone: { width: 390, height: 844 } })) {
  test.describe(name, () => {
    test.use({ viewport });

    test('nothing jumps while a backup runs and ends', async ({ page, me }) => {
      await open(page);
      addPicture(me);
      // The files are read, and the database is waited for, until it has been seen.
      const release = await lockTable(me.database, 'wp_posts');
      await startBackup(page, 'both');
      const running = section(page, 'Backup of database & files');
      // That it appears is the answer to a click, however long that took.
      await expect(running).toBeVisible();
      const jumped = await watchForJumps(page);
      await expect(running).toContainText(/[kM]B/);
      await release();
      await expect(page.getByRole('status').filter({ hasText: 'Your backup is done.' })).toBeVisible({ timeout: JOB });
      await untilDone(page, 'Backup of database & files');
      expect(await jumped()).toBeLessThan(GOOD);
    });

    test('nothing jumps while a restore runs and ends', async ({ page, me }) => {
      await open(page);
      addPicture(me);
      await turn('line 200000');
      await startRestore(page, backups(page, 'Your backups').first(), /The whole shop/);
      const running = section(page, 'Restore of database & files');
      await expect(running).toBeVisible();
      const jumped = await watchForJumps(page);
      await expect(running).toContainText('Your shop is back online.', { timeout: JOB });
      await turn('line 0');
      await expect(page.getByRole('status').filter({ hasText: 'Your shop is restored and open again.' })).toBeVisible({ timeout: JOB });
      await expect(jobs(page).first()).toContainText('Restore of database & files');
      expect(await jumped()).toBeLessThan(GOOD);
    });

    test('nothing jumps when a job ends that nobody waited for', async ({ page, me, request }) => {
      await open(page);
      const release = await lockTable(me.database, 'wp_posts');
      await startBackup(page, 'db');
      await expect(section(page, 'Backup of the database').locator('[aria-current=step]')).toHaveText('Saving the database');
      const jumped = await watchForJumps(page);
      const headers = { accept: 'application/json' };
      const { job } = await (await request.get('/api/backups/status', { headers })).json();
      await request.post(`/backups/jobs/${job.id}/cancel`, { data: {}, headers });
      const failed = failure(page, 'The backup was cancelled');
      await expect(failed).toBeVisible();
      await release();
      expect(await jumped()).toBeLessThan(GOOD);
      await failed.getByRole('button', { name: 'Dismiss' }).click();
      await expect(failed).toBeHidden();
    });
  });
}
